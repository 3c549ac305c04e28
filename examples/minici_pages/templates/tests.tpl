<section class="tests" aria-label="Tests">
<h2>Tests</h2>
<p class="meta">{{counts}}</p>
% if suite_error:
<p class="notice failed">{{suite_error}}</p>
% end
<ul class="rows">
% for case in cases[:shown]:
<li class="case">{{mark('failed' if case['status'] != 'skipped' else 'skipped')}}
<div class="what"><span class="title">{{case['name']}}</span>
<span class="meta">{{case['classname'] or case['suite']}}{{f' · {case["file"]}' if case['file'] else ''}}</span>
% if case['message']:
<p class="message">{{case['message']}}</p>
% end
% if case['attachment']:
<p><a href="{{files}}/{{quote(case['attachment'], safe='')}}">{{case['attachment']}}</a></p>
% end
% if case['output']:
<details id="case-{{case['id']}}"><summary>Output</summary><pre>{{case['output'][:excerpt]}}</pre>
% if len(case['output']) > excerpt:
<p class="hint">The log and the report have the rest.</p>
% end
</details>
% end
</div>
<span class="span">{{f'{case["time"]:.2f} s'}}</span></li>
% end
</ul>
% if len(cases) > shown:
<p class="hint">and {{total - shown}} more failed tests, in the report among the artifacts</p>
% end
</section>
