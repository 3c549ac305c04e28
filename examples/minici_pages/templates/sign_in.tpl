<div class="narrow">
<h1>Sign in</h1>
<p class="problem" role="alert">{{problem}}</p>
<form method="post" action="{{root}}/-/sign_in" class="stack"{{' data-submit' if code else ''}}>
<input type="hidden" name="next" value="{{call.text('next')}}">
% if code:
<input type="hidden" name="code" value="{{code}}">
<p>This link signs in one browser, once.</p>
<button class="primary">Sign in</button>
% else:
<label>Private token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button class="primary">Sign in</button>
<p class="hint">The link that minici printed when it started signs you in once. For another token run, on the
server:</p>
<pre>python -m minici --db {{database}} token</pre>
% end
</form>
</div>
