<label><span><code>{{choice.name}}</code> {{'(required)' if choice.required else ''}}</span>
% shown = chosen.get(choice.name, choice.value)
% options = choice.options or (['true', 'false'] if choice.kind == 'boolean' else [])
% if options:
<select name="{{kind}}[{{choice.name}}]">
% for option in options:
<option{{' selected' if option == shown else ''}}>{{option}}</option>
% end
</select>
% else:
<input name="{{kind}}[{{choice.name}}]" value="{{shown}}"{{' required' if choice.required else ''}}>
% end
% if choice.description:
<span class="hint">{{choice.description}}</span>
% end
</label>
% if choice.kind != 'string':
<input type="hidden" name="kind[{{choice.name}}]" value="{{choice.kind}}">
% end
