# VAR Edge: every step is one command. `make help` lists them.

MODEL     ?= var_d16
PRECISION ?= $(if $(filter engine,$(MAKECMDGOALS)),fp16,fp32)
PYTHON3   ?= python3

PYTHON    := .venv/bin/python
INSTALLED := .venv/.installed

# A value as one word of the shell: file names may hold spaces and quotes, which functions of make would split at.
quoted = '$(subst ','\'',$(1))'

NAME      := $(shell basename $(call quoted,$(MODEL)) .toml)
BUNDLE    := $(call quoted,build/$(NAME)/$(PRECISION))
built      = $(call quoted,build/$(NAME)/$(1))

DEMO_BUNDLE := build/var_demo/fp32
DEMO_LABELS := smiley,animal face,flower,heart,woman,man,clock,moon,weather,vehicle,fruit,flag
DEMO_SETTINGS := --cfg 2 --top-k 20 --top-p 0.5 --seed 53

# Where the weights come from; if none is given the exporter looks beside the recipe, in VAR_CHECKPOINTS, on the hub.
WEIGHTS := $(if $(RANDOM_WEIGHTS),--random-weights $(call quoted,$(RANDOM_WEIGHTS)))
WEIGHTS += $(if $(SMOOTH),--smooth)
WEIGHTS += $(if $(VAR_CHECKPOINT),--var-checkpoint $(call quoted,$(VAR_CHECKPOINT)))
WEIGHTS += $(if $(VAE_CHECKPOINT),--vae-checkpoint $(call quoted,$(VAE_CHECKPOINT)))

BENCH := $(if $(BATCHES),--batches $(call quoted,$(BATCHES))) $(if $(COMPARE),--compare $(call quoted,$(COMPARE)))
BENCH += $(if $(VAR_CHECKPOINT),--var-checkpoint $(call quoted,$(VAR_CHECKPOINT)))
BENCH += $(if $(VAE_CHECKPOINT),--vae-checkpoint $(call quoted,$(VAE_CHECKPOINT)))
BENCHMARK := build/$(NAME)/bench_$(PRECISION)

VERIFY := $(if $(AGAINST),--against $(call quoted,$(AGAINST))) $(if $(BISECT),--bisect)
VERIFY += $(if $(VAR_CHECKPOINT),--var-checkpoint $(call quoted,$(VAR_CHECKPOINT)))
VERIFY += $(if $(VAE_CHECKPOINT),--vae-checkpoint $(call quoted,$(VAE_CHECKPOINT)))

ENGINE := $(if $(TRT),--trt $(call quoted,$(TRT))) $(if $(BATCHES),--batches $(call quoted,$(BATCHES)))
ENGINE += $(if $(COMPUTE_CAPABILITY),--compute-capability $(call quoted,$(COMPUTE_CAPABILITY)))

# On a Jetson TensorRT belongs to JetPack, outside of the environment.
SYSTEM_PACKAGES := $(if $(wildcard /etc/nv_tegra_release),--system-site-packages)
# What drives the GPU: CUDA 12 and CUDA 13 need different releases of cuda-python.
CUDA_EXTRA = $(shell $(PYTHON3) -I export/engine/cuda_extra.py)
comma     := ,

CALIBRATE := $(if $(IMAGES),--images $(call quoted,$(IMAGES))) $(if $(BUDGET),--budget $(call quoted,$(BUDGET)))
CALIBRATE += $(if $(SCALES),--scales $(call quoted,$(SCALES)))

.PHONY: help setup demo onnx calibrate engine gpu-check verify bench cpp wheel deb release-notes api lint test test-fast test-full clean
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the project and its tools, and fetch what the C++ library is compiled with
	@if command -v npm > /dev/null; then $(PYTHON) runtime/cpp/fetch.py build/cpp/deps --arm64 || \
	  echo "not fetched: what the C++ library is compiled with; its tests fetch it when they run"; \
	  else echo "npm is not installed: the C++ library cannot be compiled, and its tests will be skipped"; fi
	@$(PYTHON) -m tests.web_environment || true
	@$(PYTHON) -c "from examples.serving.environment import environment; environment()" 2> /dev/null || \
	  echo "not fetched: Triton Inference Server; its tests fetch it when they run, or say why they cannot"
	@echo ".venv is ready"

$(INSTALLED): pyproject.toml
	@test -x $(PYTHON) || $(PYTHON3) -m venv $(SYSTEM_PACKAGES) .venv
	@echo "installing VAR Edge and what it needs into .venv (minutes the first time)"
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --editable '.[export,dev$(addprefix $(comma),$(CUDA_EXTRA))]'
	@touch $@

demo: $(DEMO_BUNDLE)/manifest.json ## export the demo model and draw twelve of its classes: build/demo.png
	@$(PYTHON) -m runtime.generate --bundle $(DEMO_BUNDLE) --label "$(DEMO_LABELS)" $(DEMO_SETTINGS) --out build/demo.png

$(DEMO_BUNDLE)/manifest.json: $(INSTALLED) $(wildcard export/*.py export/*/*.py export/recipes/var_demo.toml export/recipes/demo/*)
	@$(PYTHON) -m export --model var_demo --precision fp32 --out $(DEMO_BUNDLE)

onnx: $(INSTALLED) ## export MODEL=var_d16 PRECISION=fp32 [VAR_CHECKPOINT=F VAE_CHECKPOINT=F | RANDOM_WEIGHTS=SEED, SMOOTH=1]
	@$(PYTHON) -m export --model $(call quoted,$(MODEL)) --precision $(call quoted,$(PRECISION)) $(WEIGHTS) --out $(BUNDLE)

# INT8 for TensorRT lies in int8, for ONNX Runtime on a CPU in int8-cpu.
calibrate: $(INSTALLED) ## calibrate MODEL=var_d16 to INT8 [TARGET=trt|cpu SCALES=row|mixed|scale BUDGET=0.004]
	@$(call exported,fp32)
	@$(PYTHON) -m calibration $(call built,fp32) --out $(call built,int8$(if $(filter cpu,$(TARGET)),-cpu)) \
	  --target $(call quoted,$(or $(TARGET),trt)) --method $(call quoted,$(or $(METHOD),mse)) $(CALIBRATE)

# A bundle that is there is used as it is; make onnx exports it anew.
exported = test -f $(call built,$(1)/manifest.json) || $(MAKE) --no-print-directory $(make_$(1))
make_fp32 = onnx PRECISION=fp32
make_fp16 = onnx PRECISION=fp16
make_int8 = calibrate
make_int8-cpu = calibrate TARGET=cpu

engine: $(INSTALLED) ## build TensorRT engines, MODEL=var_d16 PRECISION=fp16 [TRT=tensorrt-rtx BATCHES=1,8 COMPUTE_CAPABILITY=8.6]
	@$(call exported,$(PRECISION))
	@$(PYTHON) -m export.engine $(BUNDLE) $(ENGINE)

gpu-check: $(INSTALLED) ## on a GPU: build FP16 and INT8 engines of MODEL, verify them against FP32 on the CPU, measure
	@$(call exported,fp32)
	@$(call exported,fp16)
	@$(call exported,int8)
	@$(PYTHON) -m export.gpu_check $(call built,fp32) $(call built,fp16) $(call built,int8) --report $(call built,gpu-check)

verify: $(INSTALLED) ## compare what is built of MODEL=var_d16, stage by stage, with PyTorch [AGAINST=DIR BISECT=1]
	@$(PYTHON) -m export.verify $(call quoted,build/$(NAME)) $(VERIFY) --report $(call built,verify)

bench: $(INSTALLED) ## measure MODEL=var_d16 PRECISION=fp32 [BATCHES=1,4 COMPARE=pytorch] on this machine
	@$(PYTHON) -m runtime.bench --bundle $(BUNDLE) $(BENCH) --json $(call quoted,$(BENCHMARK).json) --plot $(call quoted,$(BENCHMARK).png)

# Other builds of the library lie beside this one: sanitizers, fuzzers, aarch64.
cpp: $(INSTALLED) ## build the C and C++ library and its examples in build/cpp/release, and test them
	@$(PYTHON) runtime/cpp/fetch.py build/cpp/deps
	@PATH="$(CURDIR)/.venv/bin:$$PATH" cmake -S runtime/cpp -B build/cpp/release -G Ninja -DVAR_EDGE_TESTS=ON \
	  -DONNXRUNTIME_ROOT="$(CURDIR)/build/cpp/deps/onnxruntime" -DNLOHMANN_JSON_INCLUDE="$(CURDIR)/build/cpp/deps/include" > /dev/null
	@PATH="$(CURDIR)/.venv/bin:$$PATH" cmake --build build/cpp/release > /dev/null
	@$(PYTHON) -m pytest -q tests/cpp

wheel: $(INSTALLED) ## build/packages: wheels of the Python packages and of the C and C++ library, x86-64 and aarch64
	@$(PYTHON) -m packages.wheels build/packages

deb: $(INSTALLED) ## build/packages: Debian packages of the C and C++ library, amd64 and arm64
	@$(PYTHON) -m packages.debs build/packages

release-notes: ## print what the changelog says of this version [VERSION=X.Y.Z, or TAG=vX.Y.Z, which must be this one]
	@$(PYTHON3) -m packages.release_notes $(if $(VERSION),$(call quoted,$(VERSION))) $(if $(TAG),--tag $(call quoted,$(TAG)))

api: $(INSTALLED) ## write the Python API reference to build/api
	@$(PYTHON) docs/api.py

lint: $(INSTALLED) ## check style and types
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy --no-error-summary

# Two processes with a thread each: most of the work is Python's, which uses one.
test: lint ## check style and types, run the tests: no GPU, and no download after make setup [JOBS=2]
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n $(or $(JOBS),2)

test-fast: $(INSTALLED) ## run the tests that export, compile and train nothing: about a minute [JOBS=2]
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n $(or $(JOBS),2) -m fast

test-full: lint ## the same with the full-size d16 checks: minutes and gigabytes
	@$(PYTHON) -m pytest -q -m ''

clean: ## remove what was built, keep .venv and what make setup fetched
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 -not -name cpp -not -name serving -exec rm -rf {} +; fi
	@if [ -d build/cpp ]; then find build/cpp -mindepth 1 -maxdepth 1 -not -name deps -exec rm -rf {} +; fi
	@rm -rf *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
