# %% [markdown]
# # A tour of the Python API
#
# This page answers: how do I train, compare and inspect models in a notebook?
#
# Each `# %%` begins a cell: editors such as VS Code, PyCharm and Spyder run it cell by cell, `jupytext --to notebook
# tour.py` makes a notebook of it, and `python tour.py` runs it whole. Runs are kept in `./outputs`, as those of the
# command `moe` are.

# %%
from moe_cli import explain, load_curves, load_routing, load_runs, recommend, report_table, sweep, train

# The settings of every run below; 200 steps take about 20 seconds on two idle cores.
SETTINGS = ["train.steps=200"]

# %% [markdown]
# ## Train one model
#
# `train` takes the words of `moe train`. A run that exists already is returned, not trained again.

# %%
run = train(["expert=8", "k=2", *SETTINGS])
summary = run.summary()
print(run.id, f"{summary['val_bpb']:.3f} bits/byte", f"{summary['active_params']:,} active parameters")

# %% [markdown]
# ## Compare several
#
# `sweep` takes the words of `moe sweep` and returns one row per run, as a `pandas.DataFrame`.

# %%
runs = sweep(["expert=1,8", *SETTINGS], seeds=2, name="tour")
runs[["expert", "seed", "val_bpb", "max_violation", "tokens_per_second"]]

# %% [markdown]
# `report_table` is the table of `moe report`: a row per configuration, averaged over seeds and compared with the
# dense model (`expert=1`). A notebook shows the value as a table.

# %%
table = report_table(["tour"])
table

# %% [markdown]
# In a script its rows are objects:

# %%
for row in table.rows:
    print(row.get("expert"), "experts:", row.get("val_bpb"), "bits/byte,", row.get("vs_baseline"), "to the baseline")

# %% [markdown]
# ## Ask what to use
#
# A recommendation accounts for the noise of seeds and the number of comparisons. With two seeds it is rarely sure;
# its last line is the sweep that would make it surer.

# %%
print(recommend(load_runs("outputs/tour")))

# %% [markdown]
# ## Look inside
#
# `load_curves` has every recorded metric of every run, here the validation result over training:

# %%
curves = load_curves("outputs/tour")
curves[curves["metric"] == "val/bpb"].pivot(index="tokens", columns="run", values="value")

# %% [markdown]
# `load_routing` has the share of assignments of every expert. Over the whole validation split, this is the share of
# each expert (columns) in each sparse layer (rows) of the first model; 1 / 8 is even:

# %%
routing = load_routing(run)
routing[routing["whole_split"]].pivot(index="layer", columns="expert", values="share").round(3)

# %% [markdown]
# `explain` shows the experts of each token of a text, here in the first sparse layer:

# %%
explain(run, "def __init__(self):", layer=1)

# %% [markdown]
# Everything else: [Python API](../reference/python.md). The same in a terminal: [Your first sweep](first-sweep.md).
