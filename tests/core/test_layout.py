"""The architecture of the module, proved from its syntax tree: order is the architecture."""

import ast
import builtins
import collections
import inspect
import re
import symtable
import types
from pathlib import Path

import pytest

import minici

#: The most lines of a class and of a section; the most expressions of a statement on average, and conditional ones
#: in a thousand statements; the most places where `Any` stands.
MAX_CLASS, MAX_SECTION, MEAN_EXPRESSIONS, CONDITIONALS, ANYS = 400, 900, 7.0, 45, 120

SOURCE = Path(minici.__file__).read_text(encoding='utf-8')
LINES = SOURCE.splitlines()
TREE = ast.parse(SOURCE)
#: The sections in their order, by part: each uses only what stands above it.
PARTS = {
    'ground': ('Settings', 'Errors', 'Vocabulary'),
    'language': ('Pipeline rules', 'YAML', 'Expressions', 'Keywords', 'Includes', 'Pipeline files', 'Repositories',
                 'Library', 'Compilers'),
    'storage': ('Schema', 'Database', 'Traces', 'Artifacts', 'Reports'),
    'domain': ('Store', 'Accounts', 'Projects', 'Runners', 'Jobs', 'Dependencies', 'Tests', 'Waiting', 'Processing',
               'Compiling', 'Pipelines', 'Bridges', 'Schedules', 'Releases', 'Retention', 'Queue', 'Uploads', 'Checks',
               'Backups', 'Coordinator'),
    'HTTP': ('Routes', 'Request bodies', 'Calls', 'Responses', 'Guards', 'Entities', 'Shared responses',
             'Runner API', 'Legacy CI API', 'Jobs and pipelines API',
             'Administration API', 'Schedules API', 'Webhooks', 'Git over HTTP', 'Repository API', 'Operations',
             'Application', 'Server'),
    'command': ('Local runner', 'Local runs', 'Runs by GitLab Runner', 'Command line'),
}
ORDER = ['Top', *(section for sections in PARTS.values() for section in sections)]
#: The classes of the domain, each above the one it uses.
TOWER = ['Store', 'Accounts', 'Projects', 'Runners', 'Jobs', 'Dependencies', 'Tests', 'Waiting', 'Processing',
         'Compiling', 'Pipelines', 'Bridges', 'Schedules', 'Releases', 'Retention', 'Queue', 'Uploads', 'Checks',
         'Backups', 'Coordinator']
BANNER = re.compile('# ([A-Z].*?) #{8,}')
BANNERS = {number: BANNER.fullmatch(line)[1] for number, line in enumerate(LINES, 1) if BANNER.fullmatch(line)}
SQL = re.compile(r'\b(SELECT\s|INSERT\s+(OR\s+\w+\s+)?INTO\b|UPDATE\s+\w+\s+SET\b|DELETE\s+FROM\b|PRAGMA\s+\w'
                 r'|CREATE\s+(UNIQUE\s+)?(TABLE|INDEX|TRIGGER|VIEW)\b|BEGIN\s+IMMEDIATE\b|VACUUM\s+INTO\b)')


def section_at(line):
    """Return the name of the section that a line stands in."""
    return next((name for start, name in reversed(BANNERS.items()) if start <= line), 'Top')


def section_of(node):
    """Return the name of the section that a node of the syntax tree stands in."""
    return section_at(node.lineno)


def stands_below(section, other):
    """Tell whether one section stands below another in the file."""
    return ORDER.index(section) > ORDER.index(other)


def functions():
    """Yield every function and method of the module."""
    return (node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def names_used(table, *, nested=False):
    """Yield the module's names that a symbol table refers to; a nested scope's own names shadow them."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or not nested):
            yield symbol.get_name()
    for child in table.get_children():
        yield from names_used(child, nested=True)


def names_bound(statement):
    """Return the names that a statement of the module gives a meaning to."""
    table = symtable.symtable(ast.unparse(statement), 'minici', 'exec')
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def docstrings(tree=TREE):
    """Return the constants that are docstrings."""
    return {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)}


def public_callables():
    """Yield the name and the object of every public class, function and method."""
    for name, value in vars(minici).items():
        if name.startswith('_') or getattr(value, '__module__', None) != 'minici':
            continue
        if inspect.isclass(value):
            yield name, value
            for member, method in vars(value).items():
                if not member.startswith('_') and isinstance(
                        method, (types.FunctionType, property, staticmethod, classmethod)):
                    yield f'{name}.{member}', getattr(value, member)
        elif inspect.isfunction(value):
            yield name, value


def test_sections_stand_in_order_under_one_style_of_banner():
    assert list(BANNERS.values()) == ORDER[1:]
    for line in BANNERS:
        assert len(LINES[line - 1]) == 96, f'line {line}: a banner has 96 characters'
        assert LINES[line - 3:line - 1] == ['', ''], f'line {line}: two empty lines before a banner'


def test_table_of_contents_names_every_section_in_its_part():
    contents = minici.__doc__.partition('The sections, each using only those above it:')[2]
    for part, sections in PARTS.items():
        wanted = r',\s+'.join(re.escape(section) for section in sections)
        assert re.search(rf'{part}\s+{wanted}', contents), part


def test_no_section_uses_a_later_one():
    home = {name: section_of(statement) for statement in TREE.body for name in names_bound(statement)}
    forward = {f'{section_of(statement)}, line {statement.lineno}: {name} of {home[name]}'
               for statement in TREE.body
               for name in names_used(symtable.symtable(ast.unparse(statement), 'minici', 'exec'))
               if stands_below(home.get(name, 'Top'), section_of(statement))}
    assert not forward


def test_a_name_is_bound_once():
    ours = (statement for statement in TREE.body if not isinstance(statement, ast.Import))
    bound = collections.Counter(name for statement in ours for name in names_bound(statement))
    assert {name: times for name, times in bound.items() if times > 1} == {}


def members_of(node):
    """Return the names that a class gives to itself: methods, class attributes and what is set on `self`."""
    named = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    named |= {target.id for item in node.body if isinstance(item, (ast.Assign, ast.AnnAssign))
              for target in getattr(item, 'targets', [getattr(item, 'target', None)])}
    return named | {item.attr for item in ast.walk(node)
                    if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
                    and isinstance(item.value, ast.Name) and item.value.id == 'self'}


def tower():
    """Return the classes of the domain from the ground up: names and nodes."""
    classes = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
    return {name: classes[name] for name in TOWER}


def test_each_class_of_the_domain_stands_on_the_one_before():
    bases = {name: [base.id for base in node.bases] for name, node in tower().items()}
    assert bases == {name: [below] if below else [] for below, name in zip(['', *TOWER], TOWER, strict=False)}
    assert all(section_of(node) == name for name, node in tower().items())


def test_no_class_of_the_domain_uses_what_stands_above_it():
    known, upward = set(), set()
    for name, node in tower().items():
        known |= members_of(node)
        upward |= {f'{name}, line {item.lineno}: self.{item.attr}' for item in ast.walk(node)
                   if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name)
                   and item.value.id == 'self' and item.attr not in known}
    assert not upward


def test_no_function_is_longer_than_a_screen():
    assert [(node.name, node.lineno) for node in functions() if node.end_lineno - node.lineno >= 60] == []


def test_no_class_is_longer_than_400_lines():
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(TREE)
               if isinstance(node, ast.ClassDef)}
    assert {name: length for name, length in lengths.items() if length > MAX_CLASS} == {}


def section_lengths():
    """Return how many lines each section has."""
    starts = [*BANNERS, len(LINES) + 1]
    return {name: after - start for (start, name), after in zip(BANNERS.items(), starts[1:], strict=True)}


def test_no_section_is_longer_than_900_lines():
    assert {name: length for name, length in section_lengths().items() if length > MAX_SECTION} == {}


SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert)


def statements(tree=TREE):
    """Yield the simple statements of the module, docstrings left out."""
    told = docstrings(tree)
    return (node for node in ast.walk(tree) if isinstance(node, SIMPLE)
            and not (isinstance(node, ast.Expr) and id(node.value) in told))


def expressions_in(statement):
    """Return how many expressions a statement is made of."""
    return sum(isinstance(node, ast.expr) for node in ast.walk(statement))


def is_table(statement):
    """Tell whether a statement is a table: a constant of the module or a class."""
    return statement.col_offset <= 4 and isinstance(statement, (ast.Assign, ast.AnnAssign)) and any(
        isinstance(target, ast.Name) and target.id.isupper()
        for target in getattr(statement, 'targets', [getattr(statement, 'target', None)]))


def test_statements_are_simple():
    sizes = [expressions_in(statement) for statement in statements()]
    assert sum(sizes) / len(sizes) <= MEAN_EXPRESSIONS


def test_no_statement_outside_tables_has_more_than_60_expressions():
    large = [f'line {statement.lineno}: {expressions_in(statement)}' for statement in statements()
             if expressions_in(statement) > 60 and not is_table(statement)]
    assert large == []


def test_conditional_expressions_are_few():
    conditional = sum(isinstance(node, ast.IfExp) for node in ast.walk(TREE))
    assert conditional * 1000 / sum(1 for _ in statements()) <= CONDITIONALS


PACKAGES = Path(minici.__file__).parent / 'examples'


def test_the_pages_are_written_by_the_same_rules():
    files = (PACKAGES / 'minici_pages').glob('*.py')
    trees = {path.name: ast.parse(path.read_text(encoding='utf-8')) for path in files}
    sizes = [expressions_in(statement) for tree in trees.values() for statement in statements(tree)]
    assert len(sizes) > 500
    assert sum(sizes) / len(sizes) <= 7.0
    large = [(name, statement.lineno) for name, tree in trees.items() for statement in statements(tree)
             if expressions_in(statement) > 60 and not is_table(statement)]
    assert large == []
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    assert sum(isinstance(node, ast.IfExp) for node in nodes) * 1000 / len(sizes) <= 45
    long = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60]
    assert long == []
    handlers = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).startswith('web(') for decorator in node.decorator_list)]
    assert len(handlers) > 20
    assert [name for name in handlers if not name.endswith('_route')] == []


def test_templates_decide_nothing_about_escaping():
    templates = list((PACKAGES / 'minici_pages' / 'templates').glob('*.tpl'))
    assert len(templates) > 10
    assert [path.name for path in templates if '{{!' in path.read_text(encoding='utf-8')] == []


def hidden_names():
    """Yield where a local or parameter hides a name of the module, or a parameter a builtin."""
    module = {name for statement in TREE.body for name in names_bound(statement)}

    def look(table):
        for symbol in table.get_symbols() if table.get_type() == 'function' else ():
            name = symbol.get_name()
            if symbol.is_local() and (name in module or symbol.is_parameter() and name in vars(builtins)):
                yield f'{table.get_name()}, line {table.get_lineno()}: {name}'
        for child in table.get_children():
            yield from look(child)
    return list(look(symtable.symtable(SOURCE, 'minici', 'exec')))


def test_no_local_hides_a_name_of_the_module():
    assert hidden_names() == []


def test_any_is_for_what_is_truly_any():
    assert sum(isinstance(node, ast.Name) and node.id == 'Any' for node in ast.walk(TREE)) <= ANYS


def test_handlers_are_named_after_what_they_are():
    wrong = [node.name for node in functions() if not node.name.endswith('_route') and any(
        isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
        and decorator.func.id in ('route', 'legacy_route') for decorator in node.decorator_list)]
    assert wrong == []


def test_sql_stands_only_in_storage_domain_and_entities():
    told, allowed = docstrings(), {'Schema', 'Database', 'Entities', *TOWER}
    outside = {node.lineno for node in ast.walk(TREE)
               if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
               and SQL.search(node.value) and section_of(node) not in allowed}
    assert outside == set()


def test_only_database_and_the_domain_execute_statements():
    outside = {node.lineno for node in ast.walk(TREE)
               if isinstance(node, ast.Attribute) and node.attr in ('execute', 'executemany', 'executescript')
               and section_of(node) not in {'Database', *TOWER}}
    assert outside == set()
    assert not any(isinstance(node, ast.Attribute) and node.attr == 'executescript' for node in ast.walk(TREE))


@pytest.mark.parametrize('framework', ['bottle', 'waitress', 'multipart'])
def test_http_libraries_appear_only_from_the_plumbing_down(framework):
    uses = {section_of(node) for node in ast.walk(TREE)
            if isinstance(node, ast.Name) and node.id == framework and isinstance(node.ctx, ast.Load)}
    assert uses
    assert not [section for section in uses if stands_below('Routes', section)]


def test_no_line_is_longer_than_120_characters():
    assert [number for number, line in enumerate(LINES, 1) if len(line) > 120] == []


def test_every_public_thing_has_a_docstring_that_begins_with_a_sentence():
    wrong = [name for name, value in public_callables()
             if not (inspect.getdoc(value) or '').partition('\n')[0].endswith('.')]
    assert wrong == []


def test_every_public_signature_is_annotated():
    bare = []
    for node in functions():
        if node.name.startswith('_') and not node.name.startswith('__'):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        missing = [arg.arg for arg in given if arg and not arg.annotation and arg.arg not in ('self', 'cls')]
        if missing or node.returns is None:
            bare.append((node.name, node.lineno, missing))
    assert bare == []


def test_all_lists_names_that_exist_once_each():
    assert len(set(minici.__all__)) == len(minici.__all__)
    assert [name for name in minici.__all__ if not hasattr(minici, name)] == []
