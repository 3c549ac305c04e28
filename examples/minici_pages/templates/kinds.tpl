% if len(counts) > 1 or filtered:
<nav class="kinds" aria-label="Jobs by status">
% for kind, count in counts:
%     current = kind == wanted
<a class="kind" href="{{here}}{{'' if current else f'?status={kind}'}}"
{{'aria-current=true' if current else ''}}>{{mark(statuses[kind][0])}} {{count}} {{kind}}</a>
% end
% if filtered:
<a href="{{here}}">Show all</a>
% end
</nav>
% end
