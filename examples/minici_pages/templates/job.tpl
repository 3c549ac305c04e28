% base = root + project_path(job)
% here = f'{base}/jobs/{job["id"]}'
<form method="post" id="job" data-live data-status="{{job['status']}}" data-size="{{trace_size or 0}}">
<input type="hidden" name="csrf" value="{{csrf}}">
<div class="head">
<div>
<p class="crumbs"><a href="{{root}}/{{job['project_path']}}">{{job['project_path']}}</a> /
<a href="{{base}}/pipelines/{{job['pipeline_id']}}">Pipeline #{{job['pipeline_id']}}</a> / Job
#{{job['id']}}</p>
<h1><span class="status {{status}}">{{mark(status)}}{{word(job['status'])}}</span> {{job['name']}}</h1>
% if reason:
<p class="notice">{{reason[0].upper()}}{{reason[1:]}}.</p>
% end
% if job['status'] == 'failed':
<p class="notice failed">{{failure}}
{{'This job is allowed to fail.' if job['allow_failure'] else ''}}</p>
% end
</div>
% if owner:
<p class="actions">
% for action, label, confirm in job_actions(job):
<button class="{{'danger' if action == 'cancel' else ''}}" formaction="{{here}}/{{action}}"
data-confirm="{{confirm}}">{{label}}</button>
% end
% if job['finished_at'] and not job['erased_at'] and (trace_size is not None or artifacts):
<button formaction="{{here}}/erase"
data-confirm="Remove the log and the artifacts of this job for good?">Erase</button>
% end
</p>
% end
</div>
{{tests}}
</form>
<div class="columns">
<section class="log" id="log" data-url="{{here}}" aria-label="Log">
<div class="tools">
<form role="search" id="find"><input type="search" name="text" placeholder="Search the log"
aria-label="Search the log">
<button type="button" data-step="-1" aria-label="Previous match">↑</button><button
aria-label="Next match">↓</button>
<output></output></form>
<span class="jumps"><button data-do="top">Top</button><button data-do="error">First error</button><button
data-do="bottom">Bottom</button></span>
<label><input type="checkbox" id="wrap" checked> Wrap</label>
<label class="times"><input type="checkbox" id="times"> Times (UTC)</label>
<span class="files"><a href="{{here}}/raw">Raw</a> <a href="{{here}}/plain">Plain text</a></span>
</div>
<div id="trace" tabindex="0" role="region" aria-label="Lines of the log">
<button data-do="before" hidden>Show earlier lines</button><div></div>
<button data-do="more" hidden>Show later lines</button><p class="note"></p></div>
<noscript><p class="empty">Without JavaScript, read the log as <a href="{{here}}/plain">plain
text</a>.</p></noscript>
</section>
<aside id="facts" data-live aria-label="About this job">
<dl>
% if job['started_at']:
<dt>Duration</dt><dd>{{span(job, now)}}</dd>
<dt>Started</dt><dd>{{moment(job['started_at'])}}</dd>
% else:
<dt>Created</dt><dd>{{moment(job['created_at'])}}</dd>
% end
% for name, fact in facts.items():
% if fact is not None:
<dt>{{name}}</dt><dd>{{fact}}</dd>
% end
% end
<dt>Commit</dt><dd><code>{{job['sha'][:8]}}</code>
{{commit['title']}}{{f' ({commit["author"]})' if commit['author'] else ''}}</dd>
% if job['runner_id']:
<dt>Runner</dt><dd>#{{job['runner_id']}} {{job['runner_description'] or ''}}
<span class="hint">{{about(runner_info)}}</span></dd>
% end
% if job['tags'] != '[]':
<dt>Tags</dt><dd>{{tag_marks(job)}}</dd>
% end
% if job['erased_at']:
<dt>Erased</dt><dd>{{moment(job['erased_at'])}}</dd>
% end
</dl>
% if artifacts:
<h2>Artifacts</h2>
<ul class="plain">
% for item in artifacts:
<li>
% if user:
<a href="{{here}}/artifacts/download?file_type={{item['file_type']}}">{{item['filename']}}</a>
% else:
{{item['filename']}}
% end
<span class="hint">{{size_text(item['size'])}}</span>
% if item['file_type'] == 'archive':
<a href="{{here}}/artifacts/browse">Browse</a>
% end
% if item['expire_at']:
<span class="hint">expires {{moment(item['expire_at'])}}</span>
% end
</li>
% end
</ul>
% if owner and any(item['expire_at'] for item in artifacts):
<form method="post" action="{{here}}/keep"><input type="hidden" name="csrf" value="{{csrf}}"><button
class="small">Keep</button></form>
% end
% end
% if variables:
<details><summary>Variables</summary><dl>
% for name, value in variables:
<dt><code>{{name}}</code></dt>
% if value is None:
<dd><span class="hint">hidden</span></dd>
% else:
<dd><code>{{value}}</code></dd>
% end
% end
</dl></details>
% end
% if len(attempts) > 1:
<h2>Attempts</h2>
<ul class="plain">
% for attempt in attempts:
<li><a href="{{base}}/jobs/{{attempt['id']}}"
{{'aria-current=page' if attempt['id'] == job['id'] else ''}}>{{mark(job_mark(attempt))}} #{{attempt['id']}}
{{word(attempt['status'])}}</a> {{moment(attempt['created_at'])}}</li>
% end
</ul>
% end
</aside>
</div>
