% base = root + project_path(pipeline)
<form method="post" id="pipeline" data-live>
<input type="hidden" name="csrf" value="{{csrf}}"><input type="hidden" name="back" value="pipeline">
<div class="head">
<div>
<p class="crumbs"><a href="{{root}}/{{pipeline['project_path']}}">{{pipeline['project_path']}}</a> / Pipeline
#{{pipeline['id']}}</p>
<h1><span class="status {{pipeline['status']}}">{{mark(pipeline['status'])}}{{word(pipeline['status'])}}</span>
{{commit['title'] or pipeline['name'] or f'Pipeline #{pipeline["id"]}'}}</h1>
<p class="meta"><span class="ref">{{pipeline['ref']}}</span> · <code>{{pipeline['sha'][:8]}}</code>
{{f'· {commit["author"]} ' if commit['author'] else ''}}· {{moment(pipeline['created_at'])}}
{{'· ' if pipeline['started_at'] else ''}}{{span(pipeline, now)}}
· {{sum(len(jobs) for _, jobs in stages)}} jobs ·
{{pipeline['source']}}{{f' by {pipeline["username"]}' if pipeline['username'] else ''}}</p>
</div>
% if owner:
<p class="actions">
% if statuses & {'failed', 'canceled'}:
<button formaction="{{base}}/pipelines/{{pipeline['id']}}/retry">Retry</button>
% end
% if pipeline['finished_at'] is None:
<button class="danger" formaction="{{base}}/pipelines/{{pipeline['id']}}/cancel">Cancel</button>
% end
</p>
% end
</div>
<div class="board">
% for stage, jobs in stages:
<section aria-label="Stage {{stage}}"><h2>{{stage}}</h2>
<ul>
% for job in jobs:
%     name, here = job['name'], f'{base}/jobs/{job["id"]}'
%     status, reason = job_mark(job), reasons[job['id']]
<li class="job {{status}}"><a href="{{here}}" title="{{f'{name}: {word(status)}'}}">{{mark(status)}}<span
class="sr">{{word(status)}}: </span>
<span class="name">{{name}}</span></a>{{span(job, now)}}
% for action, label, confirm in job_actions(job)[:1] if owner else ():
<button class="icon" formaction="{{f'{here}/{action}'}}" title="{{label}}" aria-label="{{f'{label} {name}'}}"
data-confirm="{{confirm}}">{{icons[action]}}</button>
% end
% if reason:
<p class="why">{{reason}}</p>
% elif status == 'failed' and job['failure_reason'] not in (None, 'script_failure'):
<p class="why">{{failures.get(job['failure_reason'], job['failure_reason'])}}</p>
% end
% if job['needs']:
<p class="needs">needs {{needs_of(job)}}</p>
% end
</li>
% end
</ul></section>
% end
</div>
</form>
