<div class="narrow">
<h1>New pipeline</h1>
% if not projects:
<p>There is no project yet. <a href="{{root}}/-/projects">Add one</a></p>
% else:
<form action="{{root}}/-/pipelines/new" class="choose">
<label>Project <select name="project">
% if project is None:
<option value="">Choose a project</option>
% end
% for row in projects:
<option{{' selected' if project is not None and row['id'] == project['id'] else ''}}>{{row['path']}}</option>
% end
</select></label>
% if project is not None:
<label>Branch or tag <input name="ref" value="{{ref}}" list="refs" autocomplete="off"></label>
<datalist id="refs">
% for name in choices.refs[:500]:
<option value="{{name}}"></option>
% end
</datalist>
% end
<button>{{'Go on' if project is None else 'Read its variables'}}</button>
</form>
<p class="problem" role="alert">{{problem}}</p>
% if project is not None:
% if unread:
<p class="notice">{{unread}}</p>
% end
<form method="post" action="{{root}}/-/pipelines/new" class="stack">
<input type="hidden" name="csrf" value="{{csrf}}">
<input type="hidden" name="project" value="{{project['path']}}">
<input type="hidden" name="ref" value="{{ref}}">
% if choices.inputs:
<h2>Inputs</h2>
% for choice in choices.inputs:
% include('choice', choice=choice, kind='input', chosen=call.mapping('input'))
% end
% end
% if choices.variables:
<h2>Variables</h2>
% for choice in choices.variables:
% include('choice', choice=choice, kind='variable', chosen=call.mapping('variable'))
% end
% end
<label>{{'Other variables' if choices.variables else 'Variables'}}, one NAME=value a line
<textarea name="variables" rows="3" spellcheck="false">{{call.text('variables')}}</textarea></label>
<details{{' open' if own_file else ''}}>
<summary>Run a certain commit, or a pipeline file of your own</summary>
<label>Commit <input name="sha" value="{{call.text('sha')}}" placeholder="40 hexadecimal digits"
spellcheck="false"></label>
<label>Pipeline file <textarea name="content" rows="8" spellcheck="false"
 placeholder="test:&#10;  script: make test">{{call.text('content')}}</textarea></label>
</details>
<p class="inline"><button class="primary">Run pipeline</button>
<span class="hint">on <span class="ref">{{ref}}</span> of {{project['path']}}</span></p>
</form>
% end
% end
</div>
