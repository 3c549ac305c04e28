<div class="narrow">
<h1>{{title}}</h1>
% for text in explanation.splitlines():
<p>{{text}}</p>
% end
<p><a href="{{root}}/">Back to the pipelines</a></p>
</div>
