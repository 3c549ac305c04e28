% base = root + project_path(pipeline)
% here = f'{base}/pipelines/{pipeline["id"]}'
<form method="post" id="pipeline" data-live>
<input type="hidden" name="csrf" value="{{csrf}}">
<div class="head">
<div>
<p class="crumbs"><a href="{{root}}/{{pipeline['project_path']}}">{{pipeline['project_path']}}</a> / Pipeline
#{{pipeline['id']}}</p>
<h1><span class="status {{pipeline['status']}}">{{mark(pipeline['status'])}}{{word(pipeline['status'])}}</span>
{{commit['title'] or pipeline['name'] or f'Pipeline #{pipeline["id"]}'}}</h1>
<p class="meta"><span class="ref">{{pipeline['ref']}}</span> · <code>{{pipeline['sha'][:8]}}</code>
{{f'· {commit["author"]} ' if commit['author'] else ''}}· {{moment(pipeline['created_at'])}}
{{'· ' if pipeline['started_at'] else ''}}{{span(pipeline, now)}}
· {{board.total}} jobs ·
{{pipeline['source']}}{{f' by {pipeline["username"]}' if pipeline['username'] else ''}}</p>
% if tests:
<p class="meta">Tests: {{tests}}</p>
% end
</div>
% if owner:
<p class="actions">
% if board.may_retry:
<button formaction="{{here}}/retry">Retry</button>
% end
% if pipeline['finished_at'] is None:
<button class="danger" formaction="{{here}}/cancel">Cancel</button>
% end
</p>
% end
</div>
{{board.kinds}}
</form>
% if board.large or wanted or name:
<form class="filters jobs" role="search" aria-label="Jobs" action="{{here}}">
% if wanted:
<input type="hidden" name="status" value="{{wanted}}">
% end
<label><span class="sr">Jobs by name</span><input type="search" name="name" value="{{name}}"
placeholder="Find a job"></label> <button>Find</button></form>
% end
<form method="post" id="jobs" data-live>
<input type="hidden" name="csrf" value="{{csrf}}"><input type="hidden" name="back" value="pipeline">
{{board.jobs(now)}}
</form>
