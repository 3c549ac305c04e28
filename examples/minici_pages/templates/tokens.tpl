<h1>Tokens</h1>
<p>A private token stands for its owner: in the <code>PRIVATE-TOKEN</code> header of the API, and when signing in
here.</p>
% if fresh:
<div class="notice"><p>The new token, shown this once:</p>
<div class="copy"><pre id="fresh">{{fresh}}</pre><button class="small" data-copy="#fresh">Copy</button></div></div>
% end
<form method="post" action="{{root}}/-/tokens" class="stack">
<input type="hidden" name="csrf" value="{{csrf}}">
<ul class="rows">
% for row in tokens:
<li class="variable"><span>{{row['description'] or 'Private token'}}</span>
<span class="meta">{{row['username']}} · {{row['scope']}} · made {{moment(row['created_at'])}}
{{'· this browser' if same_secret(row['token_hash'], user['token_hash']) else ''}}
% if row['last_used_at']:
· last used {{moment(row['last_used_at'])}}
% end
% if row['expires_at']:
· expires {{moment(row['expires_at'])}}
% end
</span>
<button class="small danger" name="revoke" value="{{row['token_hash']}}"
data-confirm="Whoever uses this token is locked out. Revoke it?">Revoke</button></li>
% end
</ul>
<div class="inline"><label>For what <input name="description" maxlength="200"></label>
<label>Scope <select name="scope"><option>api</option><option>read_api</option></select></label>
<button>Make a token</button></div>
</form>
