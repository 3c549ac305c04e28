<h1>Projects</h1>
% if projects or search:
<form class="filters" role="search" aria-label="Projects"><label>Search <input name="search"
value="{{search}}"></label>
<button>Search</button></form>
% end
<ul class="rows">
% for row in projects:
<li class="project"><a class="title" href="{{root}}/{{row['path']}}">{{row['path']}}</a>
<span class="meta">{{row['default_branch']}}</span>
% if row['id'] in newest:
%     pipeline, status = newest[row['id']], newest[row['id']]['status']
<a class="status {{status}}"
href="{{root}}/{{row['path']}}/-/pipelines/{{pipeline['id']}}">{{mark(status)}}{{word(status)}}</a>
<span class="hint">{{moment(pipeline['created_at'])}}</span>
% else:
<span class="status"></span><span class="hint">nothing yet</span>
% end
</li>
% end
</ul>
% if not projects:
<p class="empty">{{'No project matches.' if search else 'There is no project yet.'}}</p>
% end
% include('pager')
% if owner:
<h2>Add a project</h2>
<p class="problem" role="alert">{{problem}}</p>
<form method="post" action="{{root}}/-/projects" class="stack narrow">
<input type="hidden" name="csrf" value="{{csrf}}">
<label>Path <input name="path" value="{{call.text('path')}}" placeholder="group/demo" required></label>
<label>Repository <input name="import_url" value="{{call.text('import_url')}}"
placeholder="https://host/group/demo.git or file:///srv/git/demo.git"></label>
<label>Default branch <input name="default_branch" value="{{call.text('default_branch') or 'main'}}"></label>
<button class="primary">Add</button>
</form>
% end
