<nav class="pages" aria-label="Pages">
% for shown, rel, label, page in ((number > 1, 'prev', 'Newer', number - 1), (more, 'next', 'Older', number + 1)):
% if shown:
<a class="button" rel="{{rel}}" href="?{{page_link(call, page=page).partition('?')[2]}}">{{label}}</a>
% end
% end
</nav>
