% if filtered and not stages:
<p class="empty">No job matches. <a href="{{here}}">Show all</a></p>
% end
% if failures:
<section class="failures" aria-label="Failed jobs"><h2>Failed</h2>
<ul class="cards">
% for card in failures:
{{draw(card, card.name)}}
% end
</ul></section>
% end
<div class="board">
% for stage in stages:
<section aria-label="Stage {{stage.name}}"><div class="stage"><h2>{{mark(stage.status)}} {{stage.name}}</h2>
<p class="meta">
% for kind, count in stage.counts:
<span class="{{kind}}">{{count}} {{kind}}</span>
% end
</p>
% for count, reason in stage.waits[:3]:
<p class="why">{{count}} jobs: {{reason}}</p>
% end
% if stage.waits[3:]:
<p class="why">and {{len(stage.waits) - 3}} more reasons</p>
% end
</div>
<ul class="cards">
% for card in stage.singles:
{{draw(card, card.label)}}
% end
% for group in stage.groups:
<li class="group"><details id="{{group.key}}"{{' open' if group.open else ''}}><summary>
% if group.name:
<span class="name">{{group.name}}</span> {{len(group.cards)}}:
% end
{{', '.join(f'{count} {kind}' for kind, count in group.counts)}}
<span class="strip" aria-hidden="true">
% for card in group.cards:
<i class="{{card.status}}"></i>
% end
</span></summary>
<ul class="cards">
% for card in group.folded:
{{draw(card, card.label)}}
% end
</ul></details>
% if group.urgent:
<ul class="cards">
% for card in group.urgent:
{{draw(card, card.label)}}
% end
</ul>
% end
</li>
% end
</ul></section>
% end
</div>
