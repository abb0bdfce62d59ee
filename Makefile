# Everything sets itself up: `make simulate` and `make test` need Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The small CPU build of torch, where its index can be reached; without the index pip takes what it finds elsewhere.
# For a GPU: make install TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: install simulate deploy-demo bench-dp bench-memory bench bench-scaling bench-export bench-audit test \
	prove-ledger prove-chaos prove-doors prove-fuzz prove-sums prove-hospitals prove-fashion prove-clients prove-zoo \
	prove-audits prove-mutants prove-reconstruction prove-poisoning prove-side-channels prove-engines \
	prove-tls proto lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Veil needs Python 3.11 or newer; give PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[simulation,images,compression,server,report,browser,adapters,text,onnx,serve,explain,tracking,dev]'
	touch $@

simulate: install
	$(BIN)/veil simulate digits

# One server and four hospitals as processes of this machine, from provisioning to report.
deploy-demo: install
	$(BIN)/python -m simulations.deployment.demo

# What a private step costs beside a plain one, by engine; ten minutes.
bench-dp: install
	$(BIN)/python -m simulations.benchmarks.dp_step --json build/dp_step.json

# How much memory a server needs for a round, by the number of updates (docs/scaling.md); half an hour, 10 GB of disk.
bench-memory: install
	$(BIN)/python -m simulations.benchmarks.server_memory --json build/server_memory.json

# What the simulation engines cost beside bare training (docs/scaling.md); twenty minutes on two cores. pfl-research
# gets an environment of its own in build/engines/.
bench: install
	$(BIN)/python -m simulations.benchmarks.engines --json build/engines.json --plot build/engines.svg

# What a client costs in federations of 100 to 10,000, and what follows for a million (docs/scaling.md); half an hour.
bench-scaling: install
	$(BIN)/python -m simulations.benchmarks.scaling --json build/scaling.json --plot build/scaling.svg

# A trained model as ONNX, TorchScript, int8 and pruned beside torch (docs/handing-over.md); ten minutes.
bench-export: install
	$(BIN)/python -m simulations.benchmarks.handing_over --json build/handing_over.json

# A run with canaries beside the run that it audits (docs/audit.md); ten minutes.
bench-audit: install
	$(BIN)/python -m simulations.benchmarks.audit_cost

test: install
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

# Hundreds of clients killed at work: nothing leaves that isn't charged. Finished campaigns are not repeated.
prove-ledger: install
	$(BIN)/python -m tests.proofs.ledger --kills 200 --seed 1

# Hundreds of faults done to a federation of real processes, half an hour or more: killed, cut, stalled, its disks full,
# its clocks wrong. Finished campaigns are not repeated. What needs root, or libfaketime, is left out without it.
prove-chaos: install
	$(BIN)/python -m tests.proofs.chaos --faults 300 --seed 1

# Every door but the right one is shut: real clients with something wrong at a real link, and wrong certificates.
prove-doors: install
	$(BIN)/python -m pytest tests/e2e/test_doors.py tests/security/test_credentials.py tests/security/test_tls_probe.py

# A hundred thousand hostile messages to parser, server and sites. Finished campaigns are not repeated.
prove-fuzz: install
	$(BIN)/python -m tests.proofs.fuzz --messages 100000 --seed 1

# A thousand secure sums with clients that fall out anywhere: the plain sum, or none. Finished ones are not repeated.
prove-sums: install
	$(BIN)/python -m tests.proofs.sums --sums 1000 --seed 1

# What the modes of privacy are worth on real data, as tables (docs/privacy-modes.md); an hour and more in all. Finished
# runs are not repeated.
prove-hospitals: install
	$(BIN)/python -m simulations.studies.hospitals --splits 20 --out docs/evidence/hospitals.txt

prove-fashion: install
	$(BIN)/python -m simulations.studies.fashion --seeds 3 --out docs/evidence/fashion.txt

prove-clients: install
	$(BIN)/python -m simulations.studies.clients --out docs/evidence/clients.txt

# Every network on data of its kind, private and not, as one table (docs/models.md); four hours. Finished runs are not
# repeated.
prove-zoo: install
	$(BIN)/python -m simulations.studies.zoo --out docs/evidence/zoo.txt

# Audits of digits and fashion in every mode (docs/audit.md); an hour. Finished audits are not repeated.
prove-audits: install
	$(BIN)/python -m simulations.studies.audits --out docs/evidence/audits.txt

# The implementation broken on purpose, and which audit or test notices (docs/audit.md).
prove-mutants: install
	$(BIN)/python -m tests.proofs.mutants --out docs/evidence/mutants.txt

# What a curious server gets to see of images and texts, with and without protection (docs/reconstruction.md); minutes.
prove-reconstruction: install
	$(BIN)/python -m simulations.studies.reconstruction --out docs/evidence/reconstruction.txt

# Attackers among clients, and which defence holds up to which share of them (docs/poisoning.md); half an hour on two
# free cores. Finished runs are not repeated.
prove-poisoning: install
	$(BIN)/python -m simulations.studies.poisoning --out docs/evidence/poisoning.txt

# What time, lengths, words and fields of replies tell (docs/side-channels.md); ten minutes.
prove-side-channels: install
	$(BIN)/python -m simulations.attacks.side_channels --out docs/evidence/side_channels.txt

prove-engines: install
	$(BIN)/python -m simulations.studies.engines --seeds 3 --out docs/evidence/engines.txt

# A scan of a running server's TLS by sslyze, which gets an environment of its own in build/.
prove-tls: install
	$(BIN)/python -m tests.proofs.tls_scan --environment build/sslyze

# The link's frames and the messages of secure sums; run it after a change of a .proto file.
proto: install
	$(BIN)/python -m grpc_tools.protoc -I security --python_out=security --pyi_out=security security/link.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. security/secure_sum/messages.proto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
