% here = f'{root}/{project["path"]}/-'
<p class="crumbs"><a href="{{root}}/-/projects">Projects</a></p>
<div class="head"><div><h1>{{project['path']}}</h1>
<p class="meta">{{address or 'no repository: each pipeline brings its own file'}} ·
{{project['default_branch']}}</p></div>
% if owner:
<p class="actions"><a class="button" href="{{here}}/pipeline_schedules">Schedules</a>
<a class="button primary" href="{{root}}/-/pipelines/new?project={{quote(project['path'])}}">New pipeline</a></p>
% end
</div>
<div id="pipelines" data-live>
% if len(history) > 1:
<p class="history"><span class="ref">{{project['default_branch']}}</span> {{trend(history)}}
<span class="hint">{{trend_text(history)}}</span></p>
% end
% if pipelines:
% include('pipeline_list')
<p class="pages"><a href="{{here}}/pipelines">All its pipelines</a></p>
% else:
<p class="empty">Nothing has run yet.</p>
% end
</div>
<h2>Badges</h2>
<div class="copy"><pre id="badge">[![pipeline]({{badge}})]({{call.base_url}}/{{project['path']}})</pre>
<button class="small" data-copy="#badge">Copy</button></div>
<div class="copy"><pre id="coverage">[![coverage]({{coverage_badge}})]({{call.base_url}}/{{project['path']}})</pre>
<button class="small" data-copy="#coverage">Copy</button></div>
% if not public:
<p class="hint">Others see them when minici is started with <code>--public</code>.</p>
% end
% if owner:
<h2 id="variables">Variables</h2>
<form method="post" action="{{here}}/variables" class="stack">
<input type="hidden" name="csrf" value="{{csrf}}">
<ul class="rows">
% for row in variables:
<li class="variable"><code>{{row['key']}}</code>
% if row['hidden']:
<span class="meta">hidden</span>
% else:
<details><summary>Value</summary><code>{{row['value']}}</code></details>
% end
<span class="meta">{{', '.join(name for name in ('masked', 'protected', 'raw') if row[name])}}
{{'file' if row['variable_type'] == 'file' else ''}}</span>
<button class="small danger" name="remove" value="{{row['key']}}" formnovalidate
aria-label="Remove {{row['key']}}">Remove</button></li>
% end
</ul>
<div class="inline"><label>Name <input name="key" pattern="[A-Za-z0-9_]+" required></label>
<label>Value <input name="value" autocomplete="off"></label>
<label>Type <select name="variable_type"><option
value="env_var">variable</option><option>file</option></select></label>
<label class="check"><input type="checkbox" name="masked" value="1"> masked</label>
<label class="check"><input type="checkbox" name="protected" value="1"> protected</label>
<button>Set</button></div>
</form>
<h2 id="triggers">Triggers</h2>
<form method="post" action="{{here}}/triggers" class="stack">
<input type="hidden" name="csrf" value="{{csrf}}">
<ul class="rows">
% for row in triggers:
<li class="variable"><span>{{row['description'] or f'Trigger {row["id"]}'}}</span>
<details><summary>Token</summary><code>{{row['token']}}</code></details>
<span class="meta">{{moment(row['last_used']) or 'never used'}}</span>
<button class="small danger" name="remove" value="{{row['id']}}"
aria-label="Remove trigger {{row['id']}}">Remove</button></li>
% end
</ul>
<div class="inline"><label>For what <input name="description"></label> <button>Add a trigger</button></div>
</form>
<h2>Tokens</h2>
<dl class="tokens">
<dt>Runner registration token</dt><dd><details><summary>Show</summary><code>{{project['runners_token']}}</code></details></dd>
<dt>Webhook for push events</dt><dd><code>{{call.base_url}}/hooks/{{project['id']}}</code></dd>
<dt>Secret of the webhook</dt><dd><details><summary>Show</summary><code>{{project['webhook_token']}}</code></details></dd>
</dl>
% end
