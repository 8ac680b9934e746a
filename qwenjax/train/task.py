"""What every stage gives the loop: a program, batches, judgements, words. `loop.fit` and `plan` know nothing else."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax import checkpoint
from qwenjax.api.checkpoint_path import CheckpointPath, detect
from qwenjax.config import INIT_FROM, Experiment
from qwenjax.data.batches import text
from qwenjax.data.conversations import store
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.folder import Dialogues
from qwenjax.generate.decode import Request, generate
from qwenjax.generate.sampling import Sample
from qwenjax.model import transformer
from qwenjax.tokenizer import Tokenizer, load_tokenizer
from qwenjax.train.backbone import Backbone, Loaded
from qwenjax.train.step import UNLIMITED, State, StepProgram

Step = Callable[[State, dict, np.ndarray], tuple[State, dict]]
SAMPLE_TOKENS = 96


class Task:
    """A stage of training. Subclasses set `program` and `tokenizer`, and say what is read, judged and written.

    Attributes:
      headline: the number that a run of this stage is about, among those of `evaluate`.
    """

    program: StepProgram
    tokenizer: Tokenizer
    mixture: Any
    held_out: text.HeldOut
    nll: Callable  # a jitted loss, for `held_out_nats`
    headline = "eval_loss"
    has_lm_head = True  # whether its network has an output embedding

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh = experiment, mesh
        self.compute = experiment.compute_on(mesh.devices.flat[0].platform, mesh.shape)
        self.backbone = Backbone(experiment, self.compute, self.has_lm_head)
        self.fingerprints: dict[str, str] = {}  # of the frozen models, by what they are

    # ---- data ----

    def prepare(self, root: Path) -> list[str]:
        """Opens the data, making what is missing, and the tokenizer. Returns lines to print.

        Raises:
          ValueError: data missing or broken, or a tokenizer with more ids than the model has rows.
        """
        raise NotImplementedError

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows of the training data."""
        raise NotImplementedError

    @property
    def rows_per_step(self) -> int:
        """Rows of data that a step reads."""
        return self.experiment.data.batch_size

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        """(row after this batch, global batch on the mesh), from row `next_row` on, for ever."""
        mine = self._rows(self.rows_per_step)
        with text.Batches(self.read, self.rows_per_step, mine, next_row) as batches:
            for after, local in batches:
                yield after, self._place(local, self.program.batch, mine)

    def _rows(self, size: int) -> np.ndarray:
        """Rows of a global batch of `size` that this process's devices hold, in order."""
        first = next(iter(self.program.batch.values()))
        places = first.sharding.addressable_devices_indices_map((size, *first.shape[1:])).values()
        return np.unique(np.concatenate([np.arange(size)[index[0]] for index in places]))

    def _place(self, local: dict, wanted: dict, rows: np.ndarray | None = None) -> dict:
        """Global arrays on the mesh, by the ShapeDtypeStructs `wanted`; `local` has this process's `rows`, or all."""

        def block(array, size, index):
            asked = np.arange(size)[index[0]]
            return array[asked if rows is None else np.searchsorted(rows, asked)][(slice(None), *index[1:])]

        def place(name, like):
            array = local[name]
            shape = (like.shape[0] if rows is not None else len(array), *like.shape[1:])
            return jax.make_array_from_callback(shape, like.sharding, partial(block, array, shape[0]))

        return {name: place(name, like) for name, like in wanted.items()}

    def describe(self, row: int) -> str:
        """Where a row of a step came from, for an error message."""
        return self.mixture.describe(row)

    def close(self) -> None:
        """Ends what runs beside the training."""

    def open_files(self, how: Encoding, root: Path) -> list[Dialogues]:
        """The experiment's chat files, encoded now if they are not under `root`.

        Raises:
          ValueError: none is named, one is missing, or has no row that can be used.
        """
        files = self.experiment.chat.files
        if not files or not all(file.path for file in files):
            raise ValueError(
                f"{self.experiment.name} reads {how.kind}s and names no file of them; wanted "
                f'--set \'chat.files=[{{"path": "FILE.jsonl"}}]\', as `python -m qwenjax.data convert` writes it'
            )
        return [store.prepare(file.path, self.tokenizer, how, root) for file in files]

    # ---- where it starts ----

    @cached_property
    def source(self) -> CheckpointPath:
        """The model that the run starts from."""
        if not self.experiment.init_from:
            raise ValueError(
                f"{self.experiment.name} starts from a model; name it: --set init_from=PATH (a run, a checkpoint of "
                "the hubs, a GGUF file)"
            )
        return detect(self.experiment.init_from)

    def load_tokenizer(self) -> Tokenizer:
        """That of `data.tokenizer`, checked against the model's embedding."""
        if self.experiment.data.tokenizer == INIT_FROM:
            found = self.source.tokenizer()
            if found is None:
                raise ValueError(
                    f"no tokenizer lies with {self.experiment.init_from}; name one: --set data.tokenizer=PATH"
                )
        else:
            found = load_tokenizer(self.experiment.data.tokenizer)
        return self.check_tokenizer(found)

    def check_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer. Raises ValueError if it has more ids than the model has rows."""
        vocab = self.experiment.model.vocab
        if tokenizer.size > vocab:
            raise ValueError(
                f"tokenizer {tokenizer.name} has {tokenizer.size} ids but model.vocab={vocab}; "
                f"use --set model.vocab={-(-tokenizer.size // 128) * 128}"
            )
        return tokenizer

    def same_tokenizer(self, fingerprint: str, path: Any) -> None:
        """Raises ValueError if what lies at `path` was made with another tokenizer."""
        if fingerprint != self.tokenizer.fingerprint:
            raise ValueError(
                f"{path} was trained with another tokenizer than {self.tokenizer.name} "
                f"({fingerprint[:12]}… there, {self.tokenizer.fingerprint[:12]}… here): "
                "its ids mean other text"
            )

    def begin(self, say: Callable[[str], None]) -> State:
        """The state of a new run: from `init_from`, or random."""
        if not self.experiment.init_from:
            return self.program.init()
        params, frozen = self.load(say)
        return self.program.start(params)._replace(frozen=frozen)

    def load(self, say: Callable[[str], None]) -> tuple[Any, Any]:
        """Parameters of `init_from` in their places: trained, and frozen."""
        path = self.experiment.init_from
        found = self.backbone.load(path, self.mesh, self.experiment.seed, say)
        if found.tokenizer is not None:
            self.same_tokenizer(found.tokenizer.fingerprint, path)
        if found.frozen:
            self.fingerprints["base"] = checkpoint.fingerprint(found.frozen)
        return self.joined(found)

    def joined(self, found: Loaded) -> tuple[Any, Any]:
        """Trained and frozen parameters of this stage, of what the backbone read."""
        return found.trained, found.frozen

    def frozen(self, say: Callable[[str], None], meta: dict) -> Any:
        """The frozen parameters of a run that goes on from a checkpoint with this `meta`.

        Raises:
          ValueError: a model is not the one that the run began with.
        """
        if not self.experiment.lora.rank:
            return ()
        found = self.load(lambda text: None)[1] if self.experiment.init_from else self.program.init().frozen
        self.same_models(meta)
        return found

    def same_models(self, meta: dict) -> None:
        """Raises ValueError if a frozen model is not the one that the run began with."""
        for name, old in meta.get("frozen", {}).items():
            if self.fingerprints.get(name, old) != old:
                raise ValueError(
                    f"the {name} model is not the one that this run began with (fingerprint {old} then, "
                    f"{self.fingerprints[name]} now): put it back, or start a new run in another --workdir"
                )

    # ---- running ----

    def compile(self) -> tuple[Step, Any]:
        """The step, compiled, and what the compiler says of its memory (None: several programs, compiled when used)."""
        compiled = self.lowered()["step"].compile()
        return compiled, compiled.memory_analysis()

    def lowered(self) -> dict[str, Any]:
        """Every program of a step, by name, ready to be compiled for the devices of the mesh."""
        program = self.program
        return {"step": program.step.lower(program.abstract_state(), program.batch, UNLIMITED)}

    def evaluate(self, state: State) -> dict[str, float]:
        """Held-out numbers, `headline` among them; {} if nothing is held out."""
        raise NotImplementedError

    def samples(self, state: State) -> list[tuple[str, str]]:
        """(prompt, what the model writes) for every prompt of the experiment."""
        return []

    def saved(self, state: State) -> dict:
        """What a checkpoint's description says beside parameters and rows; JSON."""
        return {"frozen": self.fingerprints} if self.fingerprints else {}

    def held_out_nats(self, state: State, batch: dict | None = None) -> tuple[float, float]:
        """Summed nll of the held-out rows (`held_out`, by `nll`), and their summed weight; every row once.

        Args:
          batch: places of their arrays, if they are not those of a step's batch.
        """
        total, weight = jnp.float32(0), 0.0
        with jax.set_mesh(self.mesh):
            for rows in self.held_out.batches:
                total += self.nll(state.params, state.frozen, self._place(rows, batch or self.program.batch), None)[0]
                weight += float(rows["weights"].sum())
        return float(total), weight

    def write(self, state: State, prompts: list[list[int]], stops: list[int], top_p: float = 0.9) -> list[str]:
        """What the model writes after prompts of ids, sampled: for people to look at."""
        cfg, seed = self.experiment.model, self.experiment.seed
        longest = min(SAMPLE_TOKENS, cfg.context - max(map(len, prompts), default=0))
        if not prompts or longest < 1:
            return [""] * len(prompts)
        requests = [Request(ids, longest, Sample(top_p=top_p), seed + i) for i, ids in enumerate(prompts)]
        with jax.set_mesh(self.mesh):
            params = self.backbone.params(state.params, state.frozen)
            model = transformer.Transformer(cfg, self.compute)
            made = generate(model, params, requests, size=self.tokenizer.size, stops=stops)
        return [self.tokenizer.decode(one.ids) for one in made]

    # ---- words ----

    def line(self, numbers: dict) -> list[str]:
        """Parts of the progress line."""
        return [f"loss {numbers['loss']:.4f}", f"lr {numbers['lr']:.2e}", f"|g| {numbers['grad_norm']:.2f}"]

    def summary_line(self, metrics: dict[str, float]) -> str:
        """An evaluation in words; `metrics` are not empty."""
        raise NotImplementedError

    def closing(self, metrics: dict[str, float]) -> str:
        """The outcome of a finished run in a few words."""
        return self.summary_line(metrics)

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        """Draws the pictures of a finished run, and returns lines of markdown: pictures and tables."""
        raise NotImplementedError

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        """(what one may want to do with a finished run, its command)."""
        return []

    @property
    def pictures(self) -> tuple[str, ...]:
        """Files that `report` draws."""
        return ("loss.png",)
