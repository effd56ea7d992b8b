"""The table of papers: a new one is a row here, and a file in this folder and in ``shown/`` (_ for -)."""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """What the page says of a paper before there are figures.

    Attributes:
        title: The paper's.
        source: Where it is, as "arXiv:2405.20233".
        claim: What it claims, in a sentence or two.
        ran: What we ran and what differs; names of the setting in braces are filled in.
    """

    title: str
    source: str
    claim: str
    ran: str


ABOUT = {
    "grokfast": About(
        "Grokfast: Accelerated Grokking by Amplifying Slow Gradients",
        "arXiv:2405.20233",
        "With the slow part of gradients amplified, x * y mod 97 groks 44 (EMA) to 50 times (MA) sooner.",
        """The paper's network (width {dim}, {layers} layers), task, batch ({batch}) and warm-up, of another
        implementation. A crossing is the first look, every {every} iterations, at {threshold:.0%} validation accuracy;
        a stable one is not followed by a look below it in the {after} iterations after the first crossing, with which
        a run ends (or after {steps:,}). Controls that the paper lacks: the field's AdamW with decoupled decay 1
        and 2, with and without EMA(0.9, 1); Adam with the paper's decay and no filter; and both with beta1 raised to
        the mean age that a gradient has in a step with the filter. A second task is
        a + b mod 31 for a perceptron. On both, optuna searches the settings of AdamW, with and without a filter, from
        those of the controls with decay 2, on seeds of the search's own: {add_trials} trials each on a + b,
        {multiply_trials} on x * y (`--full`).""",
    ),
    "mnist": About(
        "Grokfast on MNIST",
        "arXiv:2405.20233, appendix",
        "With EMA(0.8, 0.1), Omnigrok's perceptron groks 22 times sooner (44,022 to 2,001 steps).",
        """The paper's network (784-{hidden}-{hidden}-10, all weights times {scale:g}), loss (squared error), batch
        ({batch}) and optimizer (AdamW, lr 0.001) on {train:,} digits of MNIST. Held out are {held_out:,} digits
        instead of 10,000; the threshold is {threshold:.0%} (85 % or so in the paper, whose runs end at 90 %), looked at
        every {every} steps. The published run with
        the filter also raises the weight decay from 0.01 to 2: here each is changed alone too. A run ends {after}
        steps after its first crossing, or after {steps:,} steps.""",
    ),
    "lstm": About(
        "Grokfast on reviews",
        "arXiv:2405.20233, appendix",
        "With EMA(0.98, 2) and decay 10, an LSTM on IMDb reaches 90 % instead of 84 %.",
        """{train:,} Chinese product reviews of up to {length} characters to train on and the rest of {count:,} held
        out, instead of IMDb's English ones of 500 words; an LSTM of two layers of {hidden} instead of 256, weights
        times {scale:g} instead of 6, batch {batch}, gradients clipped at {clip:g}, AdamW, {steps:,} steps instead of
        10,000; so the learning rate is ten times the paper's (0.003) and the decays a tenth, which is the same decay
        in a step. The published run with the filter also raises the decay tenfold: here each is changed alone too. The paper judges by one random batch, we by all that is held out.""",
    ),
    "graph": About(
        "Grokfast on molecules",
        "arXiv:2405.20233, appendix",
        "With EMA(0.9, 1) and decay 0.01, a graph network's error on QM9 falls from 0.0066 to 0.0035.",
        """{train} molecules to train on and as many held out, as in the paper; their target is the solubility in
        water (standardised) instead of QM9's polarizability. Two layers of width {width} with a matrix for each kind
        of bond, instead of edge networks; weights times {scale:g} instead of 3, batch {batch}, AdamW with lr
        0.001, {steps:,} steps instead of 100,000. The published run with the filter also raises the decay from 0 to 0.01:
        here each is changed alone too.""",
    ),
    "data-diet": About(
        "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
        "arXiv:2107.07075",
        "Half of CIFAR-10 can be pruned without loss by EL2N scores from early in training.",
        """{train:,} digits of MNIST, and {train:,} Chinese product reviews as the set of characters in them (the
        harder set); {held_out:,} held out. A perceptron of {hidden} hidden units instead of ResNet-18. Scores are
        means over {networks} networks after {early} of {steps} steps (or none); retraining has {steps} steps of
        {batch} whatever is kept, GrokAdamW without filter, lr {lr:g} on a cosine. Columns: accuracy held out in %,
        median of the seeds (smallest to largest); the last one is the area under the ROC curve for {noisy:.0%} of
        labels drawn anew, scored with these labels.""",
    ),
    "nd-loss": About(
        "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
        "arXiv:2305.17007",
        "Adding a norm-and-direction loss on features to KD (KD++) gives 1.0 to 2.5 points on CIFAR-100.",
        """Digits of MNIST ({train:,} to train on, {held_out:,} held out) instead of CIFAR-100; perceptrons
        784-h-{features}-10 with h = {teacher_hidden} (teacher) and h = {student_hidden} (student) instead of
        ResNets, of equal feature width, so without a projection. {steps:,} steps of {batch} images, GrokAdamW
        without filter, lr {lr:g} falling to 0 on a cosine, T = {temperature:g}, weights KD 1 and ND 2. Every
        student has a teacher of its own seed.""",
    ),
    "shiftquant": About(
        "Towards Accurate and Efficient Sub-8-Bit Integer Training (ShiftQuant)",
        "arXiv:2411.10948",
        "Groups of channels whose scales differ by powers of two are near the best that group scales can do; 4-bit training loses 0.92 points.",
        """The paper's text was not at hand: this is a reconstruction after its abstract, four groups of channels by
        octaves of their ranges, rounded stochastically. Errors are on gradients and first moments recorded at steps
        {recorded_at} of two trainings: convolutions on {train:,} digits of MNIST, and a Transformer of one layer and
        width 32 on bytes of Python's language reference. Accuracy is that of the convolutions ({channels} and twice
        as many channels, {steps} steps of {batch}, {held_out:,} digits held out), with inputs, weights and gradients
        of every layer, the first and the last included, in integers; weights themselves and AdamW stay float32.""",
    ),
    "ln-tuning": About(
        "Deepfake Detection that Generalizes Across Benchmarks (LayerNorm tuning of CLIP)",
        "arXiv:2503.19683 and arXiv:2508.06248",
        "Tuning LayerNorms alone (0.03 % of the parameters) beats a linear probe by up to 20 points and equals full fine-tuning; L2-normalised features with metric terms add some.",
        """A ViT of our own (width {dim}, {depth} blocks, patches of 7 x 7), trained for {first_steps} steps on
        {train:,} digits of MNIST, instead of CLIP ViT-L; tuned for {steps} steps of {batch} on {tuned_on} digits
        shown with 0.4 of their contrast, brighter, and with noise, instead of on faces; {held_out:,} held out, shown
        so and as before. LoRA has rank {rank} in all linear layers of the blocks. Each kind of
        tuning has one learning rate, not searched. GrokAdamW without filter, lr falling to 0 on a cosine.""",
    ),
    "why": About(
        "What moves while a network groks",
        "arXiv:2405.19454, 2402.15555, 2310.06110, 2405.17479 and 2210.01117",
        "While a network groks, the rank of its features and its local complexity fall, its tangent kernel aligns with the answers, and its weight norm falls.",
        """One task for all measures: a + b mod {modulus}, {train_share:.0%} of the unordered pairs to train on, the
        perceptron of the tickets (width {width}, {hidden} hidden), full batch, GrokAdamW with lr {lr:g} and decay
        {weight_decay:g}, without and with EMA(0.98, 1). The papers use networks on images and one-dimensional
        functions. Measures are those of `grokfused/lab/measures.py`, on training data, every {every} steps; the
        tangent kernel is of {kernel_of} equations, the gradient stream of 64 elements over {stream} steps. A run ends
        {after:,} steps after it has generalised ({threshold:.0%}), or after {steps:,}.""",
    ),
    "rounding": About(
        "Revisiting BFloat16 Training",
        "arXiv:2010.06192",
        "Training in 16-bit parameters loses accuracy where they are rounded to nearest; stochastic rounding or Kahan summation make it equal to float32.",
        """A byte-level language model (the decoder of `grokfused/lab/model.py`, {layers} layers of width {dim}) learns
        the language reference that ships with Python, the last {held_out:.0%} of it held out. Forward and backward
        pass are computed in float32 from the widened parameters, so that rows differ in nothing but what is stored:
        parameters, their gradients, states. GrokAdamW without the filter, {steps:,} steps of {batch} windows of
        {context} bytes, lr {lr:g} falling to 0 on a cosine, weight decay {weight_decay:g}; in a seed, all rows begin
        with the same weights and see the same windows. Bytes are per parameter: held in memory (parameter, states,
        Kahan's rest), and moved by a step (all of these both ways, and the gradient). Losses are nats per byte, means
        of the seeds; "above float32" is paired by seed.""",
    ),
    "tickets": About(
        "Bridging Lottery Ticket and Grokking",
        "arXiv:2310.19470",
        "The largest 40 % of the weights of a network that generalises, trained anew from their beginnings, generalise almost as soon as they memorise; other masks and norms do not, and a ticket of 19 % needs no weight decay.",
        """AdamW (GrokAdamW without filter), betas (0.9, 0.98); tickets keep {density:.0%}, global magnitude. **mlp** is
        the paper's: a + b mod 67, 911 of 2,278 pairs, perceptron of 115,000 weights, lr 0.001, decay 1, 40,000 steps
        instead of 30,000 (a seed generalises later than that). **small** is the same for a + b mod 31, 70 % of the
        pairs, width 128, lr 0.003, 4,000 steps. Two more are of `--full`. **transformer** is a decoder of one layer
        and width 64 on that task, lr 0.001, 4,000 steps. **mnist** is Omnigrok's perceptron, 1,000 digits to train on
        and 4,000 held out, batch 200, lr 0.001, decay 2, 3,000 steps. t_mem and t_gen are first crossings of 95 % (85 %
        on digits) in training and test accuracy; a run ends at t_gen, but a dense one. SynFlow is the original (100 rounds, an input of ones).""",
    ),
}
