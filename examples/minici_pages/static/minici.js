const all = selector => document.querySelectorAll(selector);
const make = (tag, className = '', textContent = '') =>
  Object.assign(document.createElement(tag), {className, textContent});

// Ages, and the clocks of what runs.
const UNITS = [
  [31536000, 'year'],
  [2592000, 'month'],
  [86400, 'day'],
  [3600, 'hour'],
  [60, 'minute'],
  [1, 'second'],
];
const words = new Intl.RelativeTimeFormat('en', {numeric: 'auto', style: 'short'});
const pad = number => String(number).padStart(2, '0');
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = pad(Math.floor(seconds) % 60);
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${pad(minutes % 60)}:${rest}`;
}
function tick() {
  for (const time of all('time')) {
    const age = (new Date(time.dateTime) - Date.now()) / 1000;
    const [length, unit] = UNITS.find(([length]) => Math.abs(age) >= length) || [1, 'second'];
    const text = words.format(Math.trunc(age / length), unit);
    time.title ||= new Date(time.dateTime).toLocaleString();
    if (time.textContent !== text) time.textContent = text;
  }
  for (const span of all('[data-since]')) span.textContent = clock(Math.max(0, Date.now() / 1000 - span.dataset.since));
}

// What is marked as live is fetched again now and then, and put in its place when it has changed.
const gist = part => part.outerHTML.replace(/(data-since="[0-9]+">)[^<]*/g, '$1');
const seen = new Map(Array.from(all('[data-live]'), part => [part.id, gist(part)]));
async function refresh() {
  const answer = await fetch(location.pathname + location.search, {headers: {Accept: 'text/html'}, cache: 'no-cache'});
  if (answer.redirected) return location.reload(); // to the page for signing in
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
  document.title = fresh.title;
  document.getElementById('icon').href = fresh.getElementById('icon').href;
  for (const part of fresh.querySelectorAll('[data-live]')) {
    const old = document.getElementById(part.id),
      html = gist(part);
    if (!old || seen.get(part.id) === html) continue;
    seen.set(part.id, html);
    const open = new Map(
      Array.from(old.querySelectorAll('details'), (details, at) => [details.id || at, details.open]),
    );
    const focus = Array.from(old.querySelectorAll('a, button, summary')).indexOf(document.activeElement);
    old.replaceWith(part);
    part.querySelectorAll('details').forEach((details, at) => {
      details.open = open.get(details.id || at) ?? details.open;
    });
    part.querySelectorAll('a, button, summary')[focus]?.focus();
  }
  tick();
}
async function keep(action, pause) {
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, pause));
    if (document.hidden) continue;
    try {
      await action();
    } catch (_error) {
      await new Promise(resolve => setTimeout(resolve, 5 * pause));
    }
  }
}

// A log: what a terminal would show, as elements; no text of it is ever taken for markup.
const ESCAPE = /\x1b(?:\[([0-?]*)[ -/]*([@-~])|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])/g;
const SECTION = /section_(start|end):([0-9]+):([A-Za-z0-9_.-]+)(\[[^[\]]*\])?$/;
const FLAGS = {1: 'b', 2: 'd', 3: 'i', 4: 'u', 7: 'r', 9: 's'},
  ENDS = {22: 'bd', 23: 'i', 24: 'u', 27: 'r', 29: 's'};
const ERASE = /\x1b\[[0-2]?K/;
const UNFINISHED = /\x1b(?:\[[0-?]*)?[ -/]*$/,
  CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;
const MOST_SPANS = 2000;
function colour(style, plane, codes) {
  const kind = codes.shift();
  const numbers = codes.splice(0, kind === 5 ? 1 : kind === 2 ? 3 : 0).map(number => Math.min(255, number || 0));
  const [red, green = red, blue = red] = numbers;
  if (kind === 5 && red < 16) style[plane] = red;
  else if (kind === 5)
    style[plane] =
      red > 231
        ? Array(3).fill(red * 10 - 2312)
        : [red - 16, 0, 0].map((_, at) => [0, 95, 135, 175, 215, 255][Math.floor((red - 16) / [36, 6, 1][at]) % 6]);
  else if (kind === 2) style[plane] = [red, green, blue];
}
function restyle(style, codes) {
  while (codes.length) {
    const code = codes.shift() || 0;
    if (code === 0) {
      for (const key of Object.keys(style)) delete style[key];
    } else if (FLAGS[code]) style[FLAGS[code]] = true;
    else if (ENDS[code]) for (const key of ENDS[code]) delete style[key];
    else if (code === 38 || code === 48) colour(style, code === 38 ? 'f' : 'g', codes);
    else if (code === 58)
      colour({}, 'f', codes); // of the underline
    else if (code === 39 || code === 49) delete style[code === 39 ? 'f' : 'g'];
    else if (code >= 30 && code < 48) style[code < 40 ? 'f' : 'g'] = code % 10;
    else if (code >= 90 && code < 108 && code % 10 < 8) style[code < 100 ? 'f' : 'g'] = (code % 10) + 8;
  }
}
function numbers(codes) {
  // kinds of underlines are one; a colour with colons may name a space of colours
  return codes
    .replace(/(^|;)4:([0-9])/g, (_, before, kind) => before + (+kind ? 4 : 24))
    .replace(/(:2):[0-9]*(?=(:[0-9]*){3})/g, '$1')
    .split(/[;:]/)
    .map(Number);
}
function paint(text, style, target) {
  const put = piece => {
    piece = piece.replace(CONTROLS, '');
    if (!piece) return;
    const [front, back] = style.r ? ['g', 'f'] : ['f', 'g'],
      shown = {f: style[front], g: style[back]};
    const planes = ['f', 'g'].filter(plane => shown[plane] !== undefined);
    const classes = Object.keys(style).filter(key => style[key] === true && (key !== 'r' || !planes.length));
    if ((!classes.length && !planes.length) || target.childNodes.length > MOST_SPANS) return target.append(piece);
    const span = make('span', '', piece);
    for (const plane of planes) {
      if (Array.isArray(shown[plane])) span.style[plane === 'f' ? 'color' : 'backgroundColor'] = `rgb(${shown[plane]})`;
      else classes.push(plane + shown[plane]);
    }
    span.className = classes.join(' ');
    target.append(span);
  };
  let at = 0;
  for (const found of text.matchAll(ESCAPE)) {
    put(text.slice(at, found.index));
    at = found.index + found[0].length;
    if (found[2] === 'm') restyle(style, numbers(found[1]));
  }
  put(text.slice(at));
}

// What runners from 18.7 on write before each line: when, which stream (O or E), and + when the line before goes on.
const STAMP = /^([0-9]{4}-[0-9-]{5}T([0-9:]{8})\.[0-9]{6}Z) [0-9a-f]{2}([OE])([ +])/;

class Painter {
  // Turns the text of a log into lines below `root`, the first with the number `line`, however it is cut into pieces.
  // A log has time stamps if its first line has; one that is painted from within a line shows it by the next.
  constructor(root, line, {stamped, within = false} = {}) {
    Object.assign(this, {line, stamped, within, place: root, sections: [], style: {}, rest: '', partial: null});
    this.open = null; // a line with a stamp that the next one may continue
  }
  feed(text) {
    this.partial?.remove();
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop();
    for (const line of lines) this.take(line);
    const {text: shown = '', stamp} = this.joined(this.rest.replace(UNFINISHED, ''));
    this.partial = shown || this.open ? this.add(shown, {...this.style}, true, stamp) : null;
  }
  take(line) {
    const stamp = this.stamped === false ? null : STAMP.exec(line);
    if (stamp || !this.within) this.stamped ??= Boolean(stamp);
    this.within = false;
    const text = stamp ? line.slice(stamp[0].length) : line;
    if (stamp?.[4] === '+' && this.open) {
      this.open.text += text;
      return;
    }
    this.close();
    if (stamp) this.open = {text, stamp};
    else this.put(text);
  }
  joined(rest) {
    // The line that has not ended, with what has come of it so far.
    const stamp = this.stamped === false ? null : STAMP.exec(rest);
    if (!stamp && this.stamped && rest.length < 32) return this.open ?? {};
    if (!stamp) return {text: rest};
    const text = rest.slice(stamp[0].length);
    if (stamp[4] === '+' && this.open) return {text: this.open.text + text, stamp: this.open.stamp};
    this.close();
    return {text, stamp};
  }
  close() {
    if (this.open) this.put(this.open.text, this.open.stamp);
    this.open = null;
  }
  end() {
    // Nothing follows: what may have gone on does not.
    this.partial?.remove();
    this.partial = null;
    this.close();
  }
  put(text, stamp) {
    this.add(text, this.style, false, stamp);
    this.line += 1;
  }
  add(line, style, partial = false, stamp = null) {
    let text = make('span', 'text'),
      place = this.place,
      row = null,
      marks = 0;
    const put = () => {
      const number = make('a', '', this.line),
        again = row;
      row = make('div', 'line');
      if (!again) row.id = `L${this.line}`;
      number.href = `#L${this.line}`;
      number.tabIndex = -1;
      row.append(number, text);
      if (stamp) this.mark(row, stamp);
      place.append(row);
      text = make('span', 'text');
    };
    for (const piece of line.split('\r')) {
      // each takes the place of the one before, as on a terminal
      const mark = SECTION.exec(piece),
        shown = mark ? piece.slice(0, mark.index) : piece;
      if (shown.replace(ESCAPE, '').replace(CONTROLS, '') || ERASE.test(shown)) text.replaceChildren();
      paint(shown, style, text);
      if (mark && !partial) {
        if (text.textContent) put();
        place = this.section(...mark.slice(1));
        marks += 1;
      }
    }
    if (text.textContent || (!marks && !partial)) put();
    return row;
  }
  mark(row, [, moment, time, stream]) {
    const shown = make('span', 'stamp', time);
    shown.title = `${moment}, ${stream === 'E' ? 'stderr' : 'stdout'}`;
    row.firstChild.after(shown);
    if (stream === 'E') row.classList.add('stderr');
  }
  section(what, time, name, options = '') {
    if (what === 'start') {
      const section = make('div', 'section'),
        header = make('div', 'header'),
        lines = make('div', 'lines');
      const fold = make('button', 'fold');
      fold.setAttribute('aria-label', `Section ${name}`);
      header.append(fold);
      section.append(header, lines);
      this.place.append(section);
      this.sections.push({name, time, header, parent: this.place});
      this.place = lines;
      turn(section, options.includes('collapsed=true'));
      return header;
    }
    const at = this.sections.findLastIndex(section => section.name === name);
    if (at >= 0) {
      const {header, time: began, parent} = this.sections[at];
      if (!header.querySelector('.text')) header.append(make('span', 'text', name));
      if (+time >= +began && time - began < 1e7) header.append(make('span', 'took', clock(time - began)));
      this.sections.length = at;
      this.place = parent;
    }
    return this.place;
  }
}
function turn(section, folded = !section.classList.contains('folded')) {
  section.classList.toggle('folded', folded);
  section.querySelector('.fold').setAttribute('aria-expanded', !folded);
}

const CONTEXT = 30; // lines before one that is led to

class Log {
  // Shows the window of a trace from byte `start` to byte `end`, and goes on with it while it grows.
  constructor(element) {
    this.url = element.dataset.url;
    this.trace = document.getElementById('trace');
    [this.earlier, this.body, this.later, this.note] = this.trace.children;
    this.piece = +(element.dataset.piece || 131072);
    this.following = false;
    this.trace.addEventListener('scroll', () => {
      const {scrollTop, clientHeight, scrollHeight} = this.trace;
      this.following = this.later.hidden && scrollTop + clientHeight > scrollHeight - 8;
    });
  }
  get facts() {
    return document.getElementById('job').dataset;
  }
  get running() {
    return ['running', 'canceling'].includes(this.facts.status);
  }
  get finished() {
    return ['success', 'failed', 'canceled', 'skipped'].includes(this.facts.status);
  }
  async fetch(start, end = '') {
    const headers = +this.facts.size || start ? {Range: `bytes=${start}-${end}`} : {};
    const answer = await fetch(`${this.url}/raw`, {headers, cache: 'no-store'});
    const anew = answer.status === 416 || (start && answer.status === 200); // or erased
    if (anew) this.reset(0, 1);
    if (anew || !answer.ok) throw new Error(answer.status);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    this.size = +(answer.headers.get('Content-Range')?.split('/')[1] ?? bytes.length);
    return bytes;
  }
  async find(query) {
    return (await (await fetch(`${this.url}/lines?${new URLSearchParams(query)}`)).json()).lines;
  }
  async open() {
    await this.tail();
    const text = new URLSearchParams(location.search).get('search');
    this.input.value = text || '';
    if (await this.showAddressed()) return;
    if (text) await this.search(text, 1);
    else if (this.start || !this.finished) await this.bottom();
  }
  get input() {
    return document.querySelector('#find input');
  }
  async tail() {
    const size = +this.facts.size;
    if (size > this.piece) {
      const [[line, start]] = await this.find({offset: size - this.piece});
      const skip = size - this.piece - start;
      if (skip < 65536) this.reset(start, line);
      else this.reset(start + skip, line, true);
    } else {
      this.reset(0, 1);
    }
    do await this.more();
    while (this.end < this.size);
  }
  reset(start, line, within = false) {
    this.body.replaceChildren();
    Object.assign(this, {start, end: start, first: line, decoder: new TextDecoder()});
    this.painter = new Painter(this.body, line, {within});
    this.shown();
  }
  shown() {
    this.earlier.hidden = this.start === 0;
    document.getElementById('log').classList.toggle('stamped', this.painter.stamped === true);
    this.later.hidden = !(this.end < this.size);
    this.note.textContent = this.end
      ? ''
      : this.running
        ? 'Nothing has been written yet.'
        : this.finished
          ? 'There is no log.'
          : 'The log starts when a runner takes this job.';
  }
  async more() {
    // One byte that is here already is asked for again: nothing lies beyond the end.
    const known = this.end > this.start ? 1 : 0;
    const bytes = await this.fetch(this.end - known, this.end + this.piece - 1);
    this.end += bytes.length - known;
    if (bytes.length > known) this.painter.feed(this.decoder.decode(bytes.subarray(known), {stream: true}));
    this.shown();
  }
  async follow() {
    const done = this.finished;
    if (this.done || (this.end < this.size && !this.following)) return;
    do await this.more();
    while (this.following && this.end < this.size);
    if (this.following) await this.bottom();
    this.done = done && this.end >= this.size;
  }
  async before() {
    const start = Math.max(0, this.start - this.piece);
    const bytes = await this.fetch(start, this.start - 1);
    const starts = this.lineStarts(bytes);
    if (!start) starts.unshift(0);
    const whole = starts.length > 1; // lines, else a piece of a very long one
    const cut = whole ? starts[0] : 0;
    const height = this.trace.scrollHeight;
    const body = make('div');
    this.start = start + cut;
    this.first -= whole ? starts.length - 1 : starts.length;
    const painter = new Painter(body, this.first, {stamped: this.painter.stamped, within: !whole});
    painter.feed(new TextDecoder().decode(bytes.subarray(cut)));
    painter.end();
    this.body.prepend(body);
    this.trace.scrollTop += this.trace.scrollHeight - height;
    this.shown();
  }
  lineStarts(bytes) {
    // Where lines start behind a newline, the last of which ends the piece. The newline before a + is none.
    const starts = [];
    for (let at = bytes.indexOf(10) + 1; at > 0; at = bytes.indexOf(10, at) + 1) {
      const stamp = this.painter.stamped && new TextDecoder().decode(bytes.subarray(at, at + 32));
      if (!stamp || STAMP.exec(stamp)?.[4] !== '+') starts.push(at);
    }
    return starts;
  }
  async show(line, offset) {
    this.following = false;
    if (!document.getElementById(`L${line}`)) await this.load(+line, offset);
    const row = document.getElementById(`L${line}`);
    if (!row) return;
    for (const old of all('.line.current')) old.classList.remove('current');
    let section = row.closest('.section');
    while (section) {
      turn(section, false);
      section = section.parentElement.closest('.section');
    }
    row.classList.add('current');
    row.scrollIntoView({block: 'center'});
  }
  async load(line, offset) {
    // What stands before a line belongs to it, unless that is very long.
    const [[first, start]] = await this.find({number: Math.max(1, line - CONTEXT)});
    this.reset(start, first);
    await this.more();
    if (document.getElementById(`L${line}`)) return;
    this.reset(offset, line);
    await this.more();
  }
  async showAddressed() {
    const [id, line] = /^#L([0-9]+)$/.exec(location.hash) || [];
    const [found] = !id ? [] : document.querySelector(id) ? [[line]] : await this.find({number: line});
    if (found) await this.show(...found);
    return found;
  }
  async top() {
    if (this.start) {
      this.reset(0, 1);
      await this.more();
    }
    this.following = false;
    this.trace.scrollTop = 0;
  }
  async bottom() {
    if (this.end < this.size) await this.tail();
    this.trace.scrollTop = this.trace.scrollHeight;
    this.following = true;
  }
  async error() {
    const [found] = await this.find({errors: 1});
    found ? await this.show(...found) : this.say('no error');
  }
  say(text) {
    document.querySelector('#find output').textContent = text;
  }
  async search(text, step) {
    if (text !== this.searched) {
      this.matches = text ? await this.find({search: text}) : [];
      this.searched = text;
      this.at = step > 0 ? -1 : 0;
      history.replaceState(null, '', text ? `?${new URLSearchParams({search: text})}` : location.pathname);
    }
    const count = this.matches.length;
    if (!count) {
      this.highlight('');
      return this.say(text ? 'no match' : '');
    }
    this.at = (this.at + step + count) % count;
    this.say(`${this.at + 1} of ${count}${count === 1000 ? '+' : ''}`);
    await this.show(...this.matches[this.at]);
    this.highlight(text);
  }
  highlight(text) {
    const words = new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'giu');
    const ranges = [],
      walker = document.createTreeWalker(this.trace, NodeFilter.SHOW_TEXT);
    while (text && walker.nextNode() && ranges.length < 1000) {
      const node = walker.currentNode;
      if (!node.parentElement.closest('.text')) continue;
      for (const found of node.data.matchAll(words)) {
        const range = new Range();
        range.setStart(node, found.index);
        range.setEnd(node, found.index + found[0].length);
        ranges.push(range);
      }
    }
    CSS.highlights?.set('found', new Highlight(...ranges));
  }
}

addEventListener('click', event => {
  const button = event.target.closest('button, .line a, .header .text');
  if (!button) return;
  if (button.matches('.fold, .header .text')) turn(button.closest('.section'));
  if (button.dataset.confirm && !confirm(button.dataset.confirm)) event.preventDefault();
  if (button.dataset.copy) {
    getSelection().selectAllChildren(document.querySelector(button.dataset.copy));
    if (document.execCommand('copy')) button.textContent = 'Copied'; // the clipboard API wants https
  }
  if (button.dataset.do) log[button.dataset.do]();
  if (button.dataset.step) log.search(log.input.value, +button.dataset.step);
  if (button.hash) {
    event.preventDefault();
    location.replace(button.hash);
  }
});
addEventListener('submit', event => {
  if (event.target.id !== 'find') return;
  event.preventDefault();
  log.search(event.target.elements.text.value, 1);
});
// Keys, for whoever does not type into a field.
const KEYS = [
  ['/', 'Search'],
  ['n', 'Next match'],
  ['N', 'Previous match'],
  ['j', 'Down a line, or to the next link of a list'],
  ['k', 'Up a line, or to the link before'],
  ['g', 'To the top'],
  ['G', 'To the bottom'],
  ['?', 'These keys'],
];
function showKeys() {
  const dialog = make('dialog', 'keys');
  const list = make('dl');
  for (const [key, meaning] of KEYS) {
    const term = make('dt');
    term.append(make('kbd', '', key));
    list.append(term, make('dd', '', meaning));
  }
  const close = make('button', '', 'Close');
  close.addEventListener('click', () => dialog.close());
  dialog.append(make('h2', '', 'Keys'), list, close);
  dialog.setAttribute('aria-label', 'Keys');
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
function move(step) {
  if (log) {
    log.following = false;
    return log.trace.scrollBy({top: step * 20});
  }
  const rows = Array.from(all('main .rows > li, main .job, main .group > details > summary'));
  const links = rows
    .map(row => (row.matches('summary') ? row : row.querySelector('.title') || row.querySelector('a')))
    .filter(link => link?.checkVisibility());
  const at = links.indexOf(document.activeElement);
  links[Math.max(0, Math.min(links.length - 1, at + step))]?.focus();
}
const DO = {
  '/': () => {
    const input = document.querySelector('[role=search] :is(input[type=search], input:not([type]))');
    input?.focus();
    input?.select();
  },
  n: () => log?.search(log.input.value, 1),
  N: () => log?.search(log.input.value, -1),
  j: () => move(1),
  k: () => move(-1),
  g: () => (log ? log.top() : scrollTo(0, 0)),
  G: () => (log ? log.bottom() : scrollTo(0, document.body.scrollHeight)),
  '?': showKeys,
};
addEventListener('keydown', event => {
  const typing = event.target.closest?.('input:not([type=checkbox]), select, textarea, dialog');
  if (event.key === 'Escape' && typing?.closest('[role=search]')) {
    event.preventDefault(); // browsers would empty the field
    typing.blur();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !DO[event.key]) return;
  event.preventDefault();
  DO[event.key]();
});
addEventListener('change', event => event.target.closest('form.choose')?.requestSubmit());
addEventListener('hashchange', () => log?.showAddressed());
let log = null;
tick();
setInterval(tick, 1000);
document.querySelector('form[data-submit]')?.submit();
if (seen.size) keep(refresh, 3000);
if (document.getElementById('log')) {
  log = new Log(document.getElementById('log'));
  log.open().finally(() => keep(() => log.follow(), 1000));
}
window.minici = {Painter};
