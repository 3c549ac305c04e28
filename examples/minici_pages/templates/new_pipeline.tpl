<div class="narrow">
<h1>New pipeline</h1>
<p class="problem" role="alert">{{problem}}</p>
% if projects:
<form method="post" action="{{root}}/-/pipelines/new" class="stack">
<input type="hidden" name="csrf" value="{{csrf}}">
<label>Project <select name="project" required>
% for row in projects:
<option{{' selected' if row['path'] == call.text('project') else ''}}>{{row['path']}}</option>
% end
</select></label>
<label>Branch or tag <input name="ref" value="{{call.text('ref')}}" placeholder="the default branch"></label>
<label>Variables, one NAME=value a line
<textarea name="variables" rows="3" spellcheck="false">{{call.text('variables')}}</textarea></label>
<details{{' open' if call.has('sha') or call.has('content') else ''}}>
<summary>Without reading a repository</summary>
<label>Commit <input name="sha" value="{{call.text('sha')}}" placeholder="40 hexadecimal digits"
spellcheck="false"></label>
<label>Pipeline file <textarea name="content" rows="8" spellcheck="false"
 placeholder="test:&#10;  script: make test">{{call.text('content')}}</textarea></label>
</details>
<button class="primary">Run pipeline</button>
</form>
% else:
<p>There is no project yet. <a href="{{root}}/-/projects">Add one</a></p>
% end
</div>
