# `make help` lists the targets. GNU make 3.81 and a POSIX shell are enough.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help tools serve test check format train accuracy bench bench-peers budget overload loadtest capacity soak bento image image-test replicas watch lock clean

PORT ?= 3000
WORKERS ?=
# Not `?=`: several shells and tool chains export HOST as the name of the machine.
HOST = 127.0.0.1
ROUTE ?=

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
TOOLS := haproxy prometheus buildah debootstrap
PEERS := litserve mlserver ray
PEER_VENVS := runs/venvs
# Twice quiet: errors only. Every pin carries its hashes, so pip installs exactly what was tested or nothing.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet --quiet

export BENTOML_DO_NOT_TRACK := True
# TensorFlow's C++ log below errors says what CPU it was built for, nothing of the run.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# To serve, HOST is where to listen. A load test is aimed at it only when make's command line says HOST=.
ELSEWHERE = $(filter command,$(origin HOST))
LOAD = --port=$(PORT) $(if $(ELSEWHERE),--host=$(HOST)) $(if $(RATE),--rate=$(RATE)) \
	$(if $(PROCESSES),--processes=$(PROCESSES)) $(if $(SLO),--slo=$(SLO)) $(ARGS)

URL = http://$(if $(filter 0.0.0.0 ::,$(HOST)),127.0.0.1,$(HOST)):$(PORT)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

serve: $(VENV)/.serve ## install what serving needs, serve exported_models/ (PORT=3000 HOST=127.0.0.1 WORKERS=)
	@echo
	@echo "Sextant on $(URL)  (OpenAPI page at /, ready when /readyz says so; Ctrl-C stops it)"
	@echo
	@echo "  curl -o seven.png '$(URL)/v1/gan/sample?n=1&digit=7&seed=1'"
	@echo "  curl --data-binary @seven.png $(URL)/v1/digit"
	@echo "  curl --data-binary @photo.jpg '$(URL)/v1/image?top=3'"
	@echo "  curl -H 'Content-Type: text/plain' -d 'A warm, funny film.' $(URL)/v1/sentiment"
	@echo "  curl -o grid.png '$(URL)/v1/gan/sample?n=100&seed=1'"
	@echo "  curl -o digits.png '$(URL)/v1/vae/sample?n=25&seed=1'"
	@echo "  curl --data-binary @seven.png -o pair.png $(URL)/v1/vae/reconstruct"
	@echo "  curl --data-binary @seven.png $(URL)/v1/vae/anomaly"
	@echo "  curl $(URL)/v1/models"
	@echo
	@exec env $(if $(WORKERS),SEXTANT_WORKERS=$(WORKERS)) \
		$(BIN)/bentoml serve serving.service:Sextant --host $(HOST) --port $(PORT)

test: $(VENV)/.load ## install the rest and run every test (ARGS="-k digit" for some)
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.load ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code in the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.dev ## train, verify and publish: ARCH=mnist_mlp (or all), ARGS="--epochs 5 --seed 1"
	@test -n "$(ARCH)" || { echo 'make train: which architecture? For example: make train ARCH=mnist_mlp' >&2; exit 2; }
	@$(BIN)/python -m training $(ARCH) $(ARGS)

accuracy: $(VENV)/.dev ## real test samples over HTTP: accuracy of each endpoint beside its manifest's
	@$(BIN)/python -m training.accuracy $(ARGS)

bench: $(VENV)/.load ## the service beside its peers, one core each, and the bars: about 20 minutes
	@$(BIN)/python -m loadtests.bench $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m loadtests.bench --readme)

bench-peers: $(VENV)/.load $(PEERS:%=$(PEER_VENVS)/%/.installed) ## beside LitServe, MLServer and Ray Serve, each in an environment of its own
	@$(BIN)/python -m loadtests.bench --extra $(ARGS)

overload: $(VENV)/.load ## three times what the service can do, for 30 s, and the verdict: ROUTE=sentiment-230
	@$(BIN)/python -m loadtests.overload $(or $(ROUTE),sentiment-230) $(ARGS)

loadtest: $(VENV)/.load ## 20 s of mixed requests by the clock, verdict, report: SHAPE= ROUTE= RATE= MINUTES= PROCESSES= SLO= HOST=
	@$(BIN)/python -m loadtests.run $(if $(SHAPE),--shape=$(SHAPE)) $(if $(ROUTE),--route=$(ROUTE)) \
		$(if $(MINUTES),--minutes=$(MINUTES)) $(LOAD)

capacity: $(VENV)/.load ## the highest rate whose p99 keeps the SLO, three times: ROUTE=digit (5 minutes; without: half an hour)
	@$(BIN)/python -m loadtests.capacity $(if $(ROUTE),--route=$(ROUTE)) $(LOAD) \
		$(if $(ELSEWHERE)$(strip $(ROUTE)$(RATE)$(PROCESSES)$(SLO)$(ARGS)),,--readme)

soak: $(VENV)/.load ## mixed requests at 60 % of the capacity, and whether anything drifts: MINUTES=30 RATE= HOST=
	@$(BIN)/python -m loadtests.soak $(if $(MINUTES),--minutes=$(MINUTES)) $(LOAD)

budget: $(VENV)/.load ## where the microseconds of a request go, layer by layer: about a minute
	@$(BIN)/python -m loadtests.budget $(ARGS)

bento: $(VENV)/.serve ## build the Bento: service, models and pins in one archive
	@$(BIN)/bentoml build

image: $(VENV)/.image ## build the image, with docker, podman or buildah: ARGS="--gpu --base IMAGE --debian --tag NAME"
	@$(BIN)/python -m deploy.image $(ARGS)

image-test: $(VENV)/.load ## build it, run it locked down, ask every route, end it; size and times (as root, with buildah)
	@$(BIN)/python -m deploy.image_test $(ARGS)

replicas: $(VENV)/.load ## three behind HAProxy, under load: rolled, killed, hung, drained: N=3 RATE= ARGS="--scenario rolling"
	@$(BIN)/python -m deploy.replicas $(if $(N),--replicas=$(N)) $(if $(RATE),--rate=$(RATE)) $(ARGS)

watch: ## Prometheus with the rules of deploy/prometheus beside a running service, on http://127.0.0.1:9090
	@exec prometheus --config.file=deploy/prometheus/prometheus.yml --storage.tsdb.path=runs/prometheus \
		--storage.tsdb.retention.time=35d --web.listen-address=127.0.0.1:9090

lock: $(VENV)/.dev ## compile requirements/*.in into hashed pins
	@cd requirements && for name in serve gpu image train dev load $(PEERS:%=peers/%); do \
		../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-header --no-emit-index-url --no-emit-find-links $(ARGS) $$name.in --output-file $$name.txt || exit; \
	done

tools: ## install the Debian packages that some tests and commands of deploy/ run (as root): HAProxy, Prometheus, buildah
	@missing=; for package in $(TOOLS); do \
		dpkg-query -W -f '$${db:Status-Abbrev}' $$package 2>/dev/null | grep -q ^ii || missing="$$missing $$package"; \
	done; test -z "$$missing" || { \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $$missing; }

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a target that is newer than the pins it installs needs no second look.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed; found "$(PYTHON)". Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python' >&2; \
		exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.serve: requirements/serve.txt $(VENV)/.created
	@echo "Installing requirements/serve.txt into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/serve.txt
	@touch $@

$(VENV)/.image: requirements/image.txt $(VENV)/.serve
	@echo "Installing requirements/image.txt into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/image.txt
	@touch $@

$(VENV)/.dev: requirements/train.txt requirements/dev.txt $(VENV)/.serve
	@echo "Installing requirements/train.txt and dev.txt into $(VENV) (TensorFlow among them) ..."
	@$(PIP) install --require-hashes -r requirements/train.txt -r requirements/dev.txt
	@touch $@

$(VENV)/.load: requirements/load.txt $(VENV)/.dev
	@echo "Installing requirements/load.txt into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/load.txt
	@touch $@

$(PEER_VENVS)/%/.installed: requirements/peers/%.txt
	@echo "Installing $< into $(@D) ..."
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --no-input --quiet --quiet install --require-hashes -r $<
	@touch $@
