"""LoRA adapters in folders of PEFT: `lora.load_peft` and `lora.save_peft`.

config.py reads the settings, matching.py has PEFT's rules for names, modules.py maps a model's
layers, fitting.py joins the three. reading.py and writing.py read and write the two files.
"""
