"""What other packages' scripts call our options, so that a refusal can name ours."""

OPTIONS = {  # option here -> its names elsewhere, without dashes in front
    "--base": "model model-id model-name model-path model-name-or-path base-model "
              "pretrained-model-name-or-path checkpoint",
    "--adapter": "adapter-path adapter-file adapter-name-or-path peft-model peft-model-id "
                 "lora-path lora-weights",
    "--out": "output output-dir output-file output-path out-file save save-dir save-path "
             "save-directory",
    "--r": "rank lora-r lora-rank lora-dim",
    "--alpha": "lora-alpha",
    "--dropout": "lora-dropout",
    "--targets": "target-modules lora-target lora-target-modules lora-modules",
    "--method": "peft-type peft-method",
    "--lr": "learning-rate",
    "--steps": "max-steps num-steps n-steps total-steps num-training-steps iters iterations "
               "max-iters num-iters",
    "--batch": "batch-size micro-batch-size train-batch-size per-device-train-batch-size",
    "--window": "block-size context-length cutoff-len max-length max-seq-len max-seq-length n-ctx "
                "seq-len seq-length sequence-length",
    "--checks": "eval-batches eval-iters val-batches",
    "--recompute": "gradient-checkpointing grad-checkpoint activation-checkpointing",
    "--dtype": "torch-dtype precision mixed-precision fp16 bf16",
    "--base-dtype": "load-in-8bit load-in-4bit quantize quantization-bit",
    "--tokens": "max-new-tokens max-tokens num-tokens n-predict",
    "--seed": "random-seed random-state",
    "--threads": "num-threads n-threads",
    "--jobs": "workers num-workers",
    "--backend": "device gpu cuda accelerator",
    "--force": "overwrite overwrite-output-dir",
}
NOTHING = "n-layer n-layers num-layers"  # near ours in spelling, and far in meaning
OURS = dict.fromkeys(NOTHING.split(), "")
OURS |= {theirs: ours for ours, names in OPTIONS.items() for theirs in names.split()}
