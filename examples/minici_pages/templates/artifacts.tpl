% base = root + project_path(job)
% here = f'{base}/jobs/{job["id"]}'
<div class="narrow">
<p class="crumbs"><a href="{{root}}/{{job['project_path']}}">{{job['project_path']}}</a> /
<a href="{{base}}/pipelines/{{job['pipeline_id']}}">Pipeline #{{job['pipeline_id']}}</a> /
<a href="{{here}}">{{job['name']}} #{{job['id']}}</a></p>
<div class="head"><h1>Artifacts</h1>
<a class="button" href="{{here}}/artifacts/download">Download all ({{size_text(artifact['size'])}})</a></div>
<p class="crumbs"><a href="{{here}}/artifacts/browse">{{artifact['filename']}}</a>
% parts = folder.split('/')[:-1]
% for depth, part in enumerate(parts, 1):
/ <a href="{{here}}/artifacts/browse/{{quote('/'.join(parts[:depth]))}}">{{part}}</a>
% end
</p>
% if not entries:
<p class="empty">This folder is empty.</p>
% end
<ul class="rows files">
% for name, size in entries[:1000]:
%     kind, path = 'browse' if size is None else 'file', quote((folder + name).rstrip('/'))
<li><a href="{{here}}/artifacts/{{kind}}/{{path}}">{{name}}</a>
<span class="hint">{{'' if size is None else size_text(size)}}</span></li>
% end
</ul>
% if len(entries) > 1000:
<p class="hint">and {{len(entries) - 1000}} more: download the archive to see them.</p>
% end
</div>
