<h1>Runners</h1>
<form method="post" id="runners" data-live>
<input type="hidden" name="csrf" value="{{csrf}}">
% if not runners:
<p class="empty">No runner is registered yet. Jobs wait until one is.</p>
% end
<ul class="rows">
% for row, info, shown in runners:
%     here, turn = f'{root}/-/runners/{row["id"]}', 'Resume' if shown == 'paused' else 'Pause'
<li class="runner">
<span class="status {{shown}}">{{word(shown)}}</span>
<div class="what"><a class="title" href="{{here}}">#{{row['id']}} {{row['description'] or info.get('name') or 'runner'}}</a>
<p class="meta">{{about(info) or 'No details yet'}}
{{'' if row['runner_type'] == 'instance_type' else '· for some projects only'}}</p>
<p class="meta">{{tag_marks(row)}} {{'' if row['run_untagged'] else 'takes only jobs with its tags'}}</p></div>
<div class="runs">
% for job in (job for job in running if job['runner_id'] == row['id']):
<p><a href="{{root}}/{{job['project_path']}}/-/jobs/{{job['id']}}">{{mark(job['status'])}} {{job['name']}}
#{{job['id']}}</a> {{span(job, now)}}</p>
% end
% if row['contacted_at']:
<p class="hint">last contact {{moment(row['contacted_at'])}}</p>
% end
</div>
% if owner:
<p class="actions">
<button class="small" formaction="{{here}}/{{turn.lower()}}"
aria-label="{{turn}} runner {{row['id']}}">{{turn}}</button>
<button class="small danger" formaction="{{here}}/remove" aria-label="Remove runner {{row['id']}}"
 data-confirm="Remove runner {{row['id']}}? Its token stops working.">Remove</button></p>
% end
</li>
% end
</ul>
<h2>Queue</h2>
% if not queue:
<p class="empty">No job waits for a runner.</p>
% end
<ul class="rows">
% for job in queue:
<li class="queued"><a href="{{root}}/{{job['project_path']}}/-/jobs/{{job['id']}}">{{mark('pending')}}
{{job['name']}} #{{job['id']}}</a>
<span class="meta">{{job['project_path']}} {{tag_marks(job)}}</span>
<span class="why">{{reasons[job['id']]}}</span> <span class="hint">{{moment(job['queued_at'])}}</span></li>
% end
</ul>
% if more:
<p class="hint">and more behind these.</p>
% end
</form>
% if owner:
<h2>Register a runner</h2>
<p>Install <code>gitlab-runner</code> on any machine that reaches this address, and paste there:</p>
<div class="copy"><pre id="register">gitlab-runner register --non-interactive --url {{call.base_url}}/
--registration-token {{registration_token}} --executor shell</pre>
<button class="small" data-copy="#register">Copy</button></div>
% end
