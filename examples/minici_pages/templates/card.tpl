<li class="job {{card.status}}"><a href="{{here}}" title="{{card.name}}: {{word}}">{{mark(card.status)}}<span
class="sr">{{word}}: </span> <span class="name">{{label}}</span></a>
% if card.since:
<span class="span" data-since="{{int(card.since)}}">{{took}}</span>
% elif took:
<span class="span">{{took}}</span>
% end
% if icon:
%     action, verb, question = card.action
<button class="icon" formaction="{{here}}/{{action}}" title="{{verb}}" aria-label="{{verb}} {{card.name}}"
data-confirm="{{question}}">{{icon}}</button>
% end
% if card.reason:
<p class="why">{{card.reason}}</p>
% end
% if card.downstream:
%     started = card.downstream
<p class="needs">{{mark(started['status'])}}<a
href="{{root}}/{{started['path']}}/-/pipelines/{{started['id']}}">{{started['path']}} #{{started['id']}}</a></p>
% end
% if card.needs:
<p class="needs">needs {{card.needs}}</p>
% end
% if card.share > 1:
<svg class="took" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect width="{{card.share}}"
height="1"/></svg>
% end
</li>
