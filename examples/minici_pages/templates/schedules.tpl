% here = f'{root}/{project["path"]}/-/pipeline_schedules'
% base = f'{root}/{project["path"]}/-/pipelines'
<p class="crumbs"><a href="{{root}}/{{project['path']}}">{{project['path']}}</a></p>
<h1>Schedules</h1>
% if not schedules:
<p class="empty">No pipeline runs by the clock yet.</p>
% end
<form method="post" id="schedules" data-live>
<input type="hidden" name="csrf" value="{{csrf}}">
<ul class="rows">
% for row in schedules:
%     name, turn = row['description'], 'Pause' if row['active'] else 'Resume'
<li class="schedule"><div class="what"><span class="title">{{name}}</span>
<p class="meta"><code>{{row['cron']}}</code> {{row['cron_timezone']}} · <span class="ref">{{row['ref'].removeprefix('refs/heads/').removeprefix('refs/tags/')}}</span>
{{f'· {row["username"]}' if row['username'] else ''}}</p></div>
<span class="hint">
% if not row['active']:
paused
% elif row['next_run_at']:
next run {{moment(row['next_run_at'])}}
% else:
never runs
% end
% if row['last_pipeline_id']:
· last <a href="{{base}}/{{row['last_pipeline_id']}}">#{{row['last_pipeline_id']}}</a>
% end
</span>
<p class="actions"><button class="small" formaction="{{here}}/{{row['id']}}/play" aria-label="Run {{name}} now">Run
now</button>
<button class="small" formaction="{{here}}/{{row['id']}}/{{turn.lower()}}" aria-label="{{turn}} {{name}}">{{turn}}</button>
<button class="small danger" formaction="{{here}}/{{row['id']}}/remove" aria-label="Remove {{name}}"
data-confirm="Remove the schedule {{name}}?">Remove</button></p></li>
% end
</ul>
</form>
<h2>New schedule</h2>
<p class="problem" role="alert">{{problem}}</p>
<form method="post" action="{{here}}" class="stack narrow">
<input type="hidden" name="csrf" value="{{csrf}}">
<label>Description <input name="description" value="{{call.text('description')}}" required></label>
<label>When: minute, hour, day of the month, month, day of the week
<input name="cron" value="{{call.text('cron')}}" placeholder="0 3 * * 1-5" spellcheck="false" required></label>
<label>Time zone <input name="cron_timezone" value="{{call.text('cron_timezone') or 'UTC'}}"></label>
<label>Branch or tag <input name="ref" value="{{call.text('ref') or project['default_branch']}}"></label>
<button class="primary">Add</button>
</form>
