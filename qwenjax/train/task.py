"""The interface between a stage and the loop: a program, batches, evaluations. `loop.fit` and `plan` know only this."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax import checkpoint
from qwenjax.api.checkpoint_path import compare, detect
from qwenjax.config import INIT_FROM, Experiment
from qwenjax.data.batches import text
from qwenjax.data.conversations import store
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.store import ChatDataset
from qwenjax.generate.decode import Request, generate
from qwenjax.generate.sampling import Sample
from qwenjax.model import attention, transformer
from qwenjax.tokenizer import Tokenizer, load_tokenizer
from qwenjax.tokenizer.base import check_same
from qwenjax.train.backbone import Backbone, Loaded
from qwenjax.train.step import UNLIMITED, State, StepProgram

Step = Callable[[State, dict, np.ndarray], tuple[State, dict]]
SAMPLE_TOKENS = 96


class Task:
    """A stage of training. Subclasses set `program` in `__init__`, and `tokenizer`, `mixture` and `read` in `prepare`.

    `operations/stage_report` has the words about a stage; a task only gives numbers and texts.
    """

    program: StepProgram
    tokenizer: Tokenizer
    mixture: Any  # of the training data
    read: text.Read  # rows of the training data
    held_out: text.HeldOut
    nll: Callable  # a jitted loss, for `held_out_nats`
    has_lm_head = True  # whether the network has an output embedding

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh = experiment, mesh
        self.compute = attention.resolve(experiment, mesh.devices.flat[0].platform, mesh.shape)
        self.backbone = Backbone(experiment, self.compute, self.has_lm_head)
        self.fingerprints: dict[str, str] = {}  # of the frozen models, by name

    # ---- data ----

    def prepare(self, root: Path) -> list[str]:
        """Opens the tokenizer and the data, and makes data that is missing. Returns lines to print."""
        raise NotImplementedError

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        """(row after this batch, global batch on the mesh), from row `next_row` on, for ever."""
        size = self.experiment.data.batch_size
        local_rows = self.local_rows(self.program.batch)
        with text.Batches(self.read, size, local_rows, next_row) as batches:
            for after, local in batches:
                yield after, self.to_mesh(local, self.program.batch, local_rows)

    def local_rows(self, batch: dict[str, jax.ShapeDtypeStruct]) -> np.ndarray:
        """Rows of a global batch that this process's devices hold, in order."""
        first = next(iter(batch.values()))
        blocks = first.sharding.addressable_devices_indices_map(first.shape).values()
        return np.unique(np.concatenate([np.arange(first.shape[0])[index[0]] for index in blocks]))

    def to_mesh(self, local: dict, batch: dict[str, jax.ShapeDtypeStruct], rows: np.ndarray | None = None) -> dict:
        """Global arrays with the shardings of `batch`. `local` holds this process's `rows`; None: all rows."""
        return {
            name: jax.make_array_from_process_local_data(
                like.sharding, local[name], local[name].shape if rows is None else like.shape
            )
            for name, like in batch.items()
        }

    def describe(self, row: int) -> str:
        """Where a row of the training data came from, for an error message."""
        return self.mixture.describe(row)

    def epochs_text(self, rows: int) -> str:
        """Epochs that so many rows take, for every source of the data: '0.50, 2.00'."""
        return ", ".join(f"{epochs:.2f}" for epochs in self.mixture.epochs(rows))

    def data_lines(self, lines: list[str], held_out: str) -> list[str]:
        """`lines` on the data, and one on how often they are read and how much is held out."""
        epochs = self.epochs_text(self.experiment.steps * self.experiment.data.batch_size)
        return [*lines, f"this run reads {epochs} epochs; {held_out} are held out for evaluation"]

    def close(self) -> None:
        """Ends processes that serve the training."""

    def open_files(self, encoding: Encoding, root: Path) -> list[ChatDataset]:
        """The experiment's chat files, encoded now if they are not under `root`. Raises ValueError if none is named."""
        files = self.experiment.chat.files
        if not files or not all(file.path for file in files):
            text = f"{self.experiment.name} reads {encoding.kind}s and names no file of them"
            raise ValueError(f"""{text}; wanted --set 'chat.files=[{{"path": "FILE.jsonl"}}]'""")
        return [store.encode_file(file.path, self.tokenizer, encoding, root) for file in files]

    def file_lines(self) -> list[str]:
        """What is in the chat files, and what is read of each."""
        return [line for file in self.mixture.files for line in file.lines()] + self.mixture.lines()

    def check_start(self) -> None:
        """Raises ValueError, with all that differs, if `init_from` holds another model than the experiment's."""
        if path := self.experiment.init_from:
            compare(detect(path), self.experiment.model, path)

    # ---- tokenizer ----

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer of `data.tokenizer`. Raises ValueError if there is none, or it does not fit `model.vocab`."""
        path = self.experiment.init_from
        if self.experiment.data.tokenizer != INIT_FROM:
            return self.check_vocab(load_tokenizer(self.experiment.data.tokenizer))
        if not path:
            raise ValueError(f"{self.experiment.name} starts from a model; name it: --set init_from=PATH")
        tokenizer = detect(path).tokenizer()
        if tokenizer is None:
            raise ValueError(f"no tokenizer found in {path}; name one: --set data.tokenizer=PATH")
        return self.check_vocab(tokenizer)

    def check_vocab(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer. Raises ValueError if it has more ids than the model has rows."""
        vocab = self.experiment.model.vocab
        if tokenizer.size > vocab:
            raise ValueError(
                f"tokenizer {tokenizer.name} has {tokenizer.size} ids but model.vocab={vocab}; "
                f"use --set model.vocab={-(-tokenizer.size // 128) * 128}"
            )
        return tokenizer

    def check_tokenizer(self, fingerprint: str, path: Any) -> None:
        """Raises ValueError if the model at `path` was trained with another tokenizer."""
        check_same(self.tokenizer, fingerprint, str(path), "use a model of this tokenizer, or change data.tokenizer")

    # ---- state ----

    def first_state(self, say: Callable[[str], None]) -> State:
        """The state of a new run: from `init_from`, or random. `say` prints where parameters come from."""
        if not self.experiment.init_from:
            return self.program.init()
        params, frozen = self.load(say)
        return self.program.start(params)._replace(frozen=frozen)

    def load(self, say: Callable[[str], None]) -> tuple[Any, Any]:
        """Parameters of `init_from`, trained and frozen, on the mesh."""
        path = self.experiment.init_from
        loaded = self.backbone.load(path, self.mesh, self.experiment.seed, say)
        if loaded.tokenizer is not None:
            self.check_tokenizer(loaded.tokenizer.fingerprint, path)
        if loaded.frozen:
            self.fingerprints["base"] = checkpoint.fingerprint(loaded.frozen)
        return self.stage_params(loaded)

    def stage_params(self, loaded: Loaded) -> tuple[Any, Any]:
        """Trained and frozen parameters of this stage, made from those of the backbone."""
        return loaded.trained, loaded.frozen

    def load_frozen(self, meta: dict) -> Any:
        """The frozen parameters of a run that resumes from a checkpoint with this `meta`, checked by `check_frozen`."""
        if not jax.tree.leaves(self.program.shapes.frozen):
            return ()
        frozen = self.load(lambda text: None)[1] if self.experiment.init_from else self.program.init().frozen
        self.check_frozen(meta)
        return frozen

    def check_frozen(self, meta: dict) -> None:
        """Raises ValueError if a frozen model is not the one that the run began with."""
        for name, old in meta.get("frozen", {}).items():
            if self.fingerprints.get(name, old) != old:
                text = f"the {name} model is not the one that this run began with"
                raise ValueError(f"{text}: put it back, or start a new run in another --workdir")

    def checkpoint_meta(self, state: State) -> dict:
        """What the meta of a checkpoint holds of this stage; JSON."""
        return {"frozen": self.fingerprints} if self.fingerprints else {}

    # ---- running ----

    def compile(self) -> tuple[Step, Any]:
        """The compiled step and the compiler's memory analysis (None if the step has several programs)."""
        compiled = self.lowered()["step"].compile()
        return compiled, compiled.memory_analysis()

    def lowered(self) -> dict[str, Any]:
        """Every program of a step, by name, ready to be compiled for the devices of the mesh."""
        program = self.program
        return {"step": program.step.lower(program.abstract_state(), program.batch, UNLIMITED)}

    def evaluate(self, state: State) -> dict[str, float]:
        """Metrics on held-out data, under names that start with eval_; {} if nothing is held out."""
        raise NotImplementedError

    def samples(self, state: State) -> list[tuple[str, str]]:
        """(prompt, text that the model writes) for every prompt of the experiment."""
        return []

    def held_out_nats(self, state: State, batch: dict | None = None) -> tuple[float, float]:
        """Summed `nll` of all rows of `held_out`, and their summed weight. `batch`: if it is not the step's."""
        total, weight = jnp.float32(0), 0.0
        with jax.set_mesh(self.mesh):
            for rows in self.held_out.batches:
                total += self.nll(state.params, state.frozen, self.to_mesh(rows, batch or self.program.batch), None)[0]
                weight += float(rows["weights"].sum())
        return float(total), weight

    def complete(self, state: State, prompts: list[list[int]], stops: list[int]) -> list[str]:
        """Sampled continuations of prompts of ids, for people to look at."""
        cfg, seed = self.experiment.model, self.experiment.seed
        longest = min(SAMPLE_TOKENS, cfg.context - max(map(len, prompts), default=0))
        if not prompts or longest < 1:
            return [""] * len(prompts)
        requests = [Request(ids, longest, Sample(top_p=0.9), seed + i) for i, ids in enumerate(prompts)]
        with jax.set_mesh(self.mesh):
            params = self.backbone.params(state.params, state.frozen)
            model = transformer.Transformer(cfg, self.compute)
            completions = generate(model, params, requests, size=self.tokenizer.size, stops=stops)
        return [self.tokenizer.decode(completion.ids) for completion in completions]
