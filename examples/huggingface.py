"""Hugging Face Trainer with GrokAdamW, interrupted and resumed.

python examples/huggingface.py --folder runs/huggingface     # pip install transformers accelerate
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from grokfused import GrokAdamW


def trainer(folder, steps):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    tokens = torch.randint(0, 32, (64, 8), generator=torch.Generator().manual_seed(1))
    return Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            str(folder),
            max_steps=steps,
            save_steps=max(1, steps // 2),
            per_device_train_batch_size=8,
            weight_decay=0.1,  # of the matrices; Trainer gives norms and biases a group without decay
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": each, "labels": each} for each in tokens],
        # The learning rate stands here: Trainer does not give its own to an optimizer class.
        optimizer_cls_and_kwargs=(GrokAdamW, {"lr": 3e-3, "alpha": 0.9, "lamb": 0.5}),
    )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--folder", type=Path, default=Path("runs/huggingface"))
options = parser.parse_args()
whole = trainer(options.folder, options.steps)
whole.train()
resumed = trainer(options.folder, options.steps)
resumed.train(resume_from_checkpoint=str(options.folder / f"checkpoint-{max(1, options.steps // 2)}"))
weights = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
print(f"the resumed run ends as the whole one, bit for bit: {all(torch.equal(a, b) for a, b in weights)}")
