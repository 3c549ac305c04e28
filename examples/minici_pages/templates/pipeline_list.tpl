<ol class="rows">
% for row in pipelines:
%     commit, base = commit_of(row), f'{root}/{row["project_path"]}'
%     here = f'{base}/-/pipelines/{row["id"]}'
<li class="pipeline">
<a class="status {{row['status']}}" href="{{here}}">{{mark(row['status'])}}{{word(row['status'])}}</a>
<div class="what">
<a class="title" href="{{here}}">{{commit['title'] or row['name'] or f'Pipeline #{row["id"]}'}}</a>
<p class="meta">#{{row['id']}} · <a href="{{base}}">{{row['project_path']}}</a> ·
<a class="ref"
href="{{root}}/?project={{quote(row['project_path'])}}&amp;ref={{quote(row['ref'])}}">{{row['ref']}}</a> ·
<code>{{row['sha'][:8]}}</code>{{f' · {commit["author"]}' if commit['author'] else ''}}</p>
</div>
<ul class="stages">
% for name, status in stages[row['id']]:
<li title="{{name}}: {{word(status)}}">{{mark(status)}}<span class="sr">{{name}}: {{word(status)}}</span></li>
% end
</ul>
<p class="when">{{span(row, now)}} {{moment(row['created_at'])}}</p>
</li>
% end
</ol>
