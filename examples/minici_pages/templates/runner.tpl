% here = f'{root}/-/runners/{runner["id"]}'
% turn = 'Resume' if state == 'paused' else 'Pause'
<form method="post" id="runner" data-live>
<input type="hidden" name="csrf" value="{{csrf}}"><input type="hidden" name="back" value="runner">
<div class="head"><div>
<p class="crumbs"><a href="{{root}}/-/runners">Runners</a></p>
<h1><span class="status {{state}}">{{word(state)}}</span> {{heading}}</h1>
<p class="meta">{{about(info) or 'No details yet'}}</p>
</div>
% if owner:
<p class="actions"><button formaction="{{here}}/{{turn.lower()}}">{{turn}}</button>
<button class="danger" formaction="{{here}}/remove"
 data-confirm="Remove runner {{runner['id']}}? Its token stops working.">Remove</button></p>
% end
</div>
<div class="columns">
<div>
<h2>Runs now</h2>
% if not running:
<p class="empty">Nothing.</p>
% end
<ul class="rows">
% for job in running:
<li class="queued"><a href="{{root}}/{{job['project_path']}}/-/jobs/{{job['id']}}">{{mark(job['status'])}}
{{job['name']}} #{{job['id']}}</a> <span class="meta">{{job['project_path']}}</span> {{span(job, now)}}</li>
% end
</ul>
<h2>Could take from the queue</h2>
% if not fit:
<p class="empty">No waiting job fits this runner.</p>
% end
<ul class="rows">
% for job in fit[:shown]:
<li class="queued"><a href="{{root}}/{{job['project_path']}}/-/jobs/{{job['id']}}">{{mark('pending')}}
{{job['name']}} #{{job['id']}}</a> <span class="meta">{{job['project_path']}} {{tag_marks(job)}}</span>
<span class="hint">{{moment(job['queued_at'])}}</span></li>
% end
</ul>
% if fit[shown:]:
<p class="hint">and {{len(fit) - shown}} more</p>
% end
% if unfit:
<h2>Cannot take</h2>
<ul class="rows">
% for reason, jobs in unfit.items():
<li class="queued"><span class="what">{{len(jobs)}} {{'job' if len(jobs) == 1 else 'jobs'}}: {{reason}}</span>
<span class="meta">
% for job in jobs[:5]:
<a href="{{root}}/{{job['project_path']}}/-/jobs/{{job['id']}}">{{job['name']}} #{{job['id']}}</a>
% end
{{', ...' if jobs[5:] else ''}}</span></li>
% end
</ul>
% end
% if limit:
<p class="hint">Only the {{limit}} oldest jobs of the queue are looked at.</p>
% end
</div>
<aside aria-label="About this runner"><dl>
<dt>Tags</dt><dd>{{tag_marks(runner) or 'none'}}</dd>
<dt>Takes</dt><dd>{{'jobs with and without tags' if runner['run_untagged'] else 'only jobs with its tags'}}</dd>
<dt>Serves</dt><dd>{{'all projects' if runner['runner_type'] == 'instance_type' else 'some projects'}}</dd>
<dt>Last contact</dt><dd>{{moment(runner['contacted_at']) or 'never'}}</dd>
% if owner and runner['ip_address']:
<dt>Address</dt><dd>{{runner['ip_address']}}</dd>
% end
% if len(managers) > 1:
<dt>Machines</dt><dd>{{len(managers)}}</dd>
% end
</dl></aside>
</div>
</form>
