<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}} · minici</title>
<link rel="icon" id="icon" href="{{root}}/-/favicon/{{status or 'created'}}.svg">
<link rel="stylesheet" href="{{root}}/-/minici.css?{{version}}">
<script type="module" src="{{root}}/-/minici.js?{{version}}"></script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="bar">
<a class="brand" href="{{root}}/">minici</a>
% if user or public:
<nav aria-label="Main">
% for name, path in (('Pipelines', ''), ('Projects', '-/projects'), ('Runners', '-/runners'), ('Tokens', '-/tokens')):
% if owner or name != 'Tokens':
%     if name != below:
<a href="{{root}}/{{path}}">{{name}}</a>
%     else:
<a href="{{root}}/{{path}}" aria-current="{{'page' if name == title else 'true'}}">{{name}}</a>
%     end
% end
% end
</nav>
% end
% if user:
<form class="who" method="post" action="{{root}}/-/sign_out"><input type="hidden" name="csrf" value="{{csrf}}">
<span>{{user['username']}}</span> <button class="plain">Sign out</button></form>
% elif public:
<a class="who" href="{{root}}/-/sign_in">Sign in</a>
% end
</header>
<main id="main">
{{content}}
</main>
<footer class="hint">Press <kbd>?</kbd> for the keys of this page</footer>
</body>
</html>
