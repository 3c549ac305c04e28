<div class="head"><h1>Pipelines</h1>
% if owner and projects:
<a class="button primary" href="{{root}}/-/pipelines/new">New pipeline</a>
% end
</div>
% if projects:
<form class="filters" action="{{root}}/" role="search" aria-label="Pipelines">
<label>Project <select name="project"><option value="">All</option>
% for row in projects:
<option{{' selected' if row['path'] == wanted['project'] else ''}}>{{row['path']}}</option>
% end
</select></label>
<label>Branch or tag <input name="ref" value="{{wanted['ref']}}" size="14"></label>
<label>Status <select name="status"><option value="">Any</option>
% for status in statuses:
<option value="{{status}}"{{' selected' if status == wanted['status'] else ''}}>{{word(status)}}</option>
% end
</select></label>
<button>Filter</button>
</form>
% end
<div id="pipelines" data-live>
% if projects and not runners:
<p class="notice">No runner is registered yet: jobs will wait. <a href="{{root}}/-/runners">Register one</a></p>
% end
% if pipelines:
% include('pipeline_list')
% elif any(wanted.values()):
<p class="empty">No pipeline matches. <a href="{{root}}/">Show all</a></p>
% else:
<div class="empty">
<h2>Nothing has run yet</h2>
<p>Submit a git repository that has a <code>.gitlab-ci.yml</code>:</p>
<pre>python -m minici --db {{database}} submit PATH --follow</pre>
% if owner:
<p>or <a href="{{root}}/-/projects">add a project</a> and
{{'start a pipeline here' if projects else 'start its pipelines from here'}}.</p>
% end
% if not runners:
<p>Then <a href="{{root}}/-/runners">register a runner</a>, which does the work.</p>
% end
</div>
% end
</div>
% include('pager')
