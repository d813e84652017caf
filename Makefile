# Commands for developers; CONTRIBUTING.md says when to use which.
.PHONY: check lint types test lock check-oldest

# The tests come last: they take minutes. TESTS=no leaves them out.
TESTS ?= yes
UV = uv==0.13.9

check: lint types
ifeq ($(TESTS),yes)
check: test
endif

lint:
	ruff check .
	ruff format --check .
	typos
	hadolint Dockerfile

types:
	mypy

test:
	pytest

# The versions of this environment, with hashes, for every platform. Run it where the suite has just passed.
# Of the extras those that tests and checks need: others may not go together with these versions.
lock:
	python -m pip install --quiet '$(UV)'
	python -m pip freeze --exclude-editable | grep -v -i '^uv==' > .constraints.txt
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --constraint .constraints.txt --extra dev --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml
	rm .constraints.txt

# The suite with the oldest versions that pyproject.toml allows, in an environment of its own (about 7 GB).
OLDEST ?= $(or $(TMPDIR),/tmp)/vipbench-oldest
check-oldest:
	python -m pip install --quiet '$(UV)'
	uv venv --quiet --clear --python 3.11 '$(OLDEST)'
	uv pip install --quiet --python '$(OLDEST)' --resolution lowest-direct --editable '.[test]'
	'$(OLDEST)/bin/python' -m pytest
	rm -rf '$(OLDEST)'
