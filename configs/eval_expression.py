"""Gene expression from H&E: the features of a run through one task of HEST-Benchmark.

    .venv/bin/python -m bioimg_jax.main --config=configs/mae_tissue.py --config.data.name=hest \\
        --config.data.source=TASK --config.data.crop_px=224 --workdir=RUN
    .venv/bin/python -m bioimg_jax.expression --config=configs/eval_expression.py \\
        --config.task.folder=TASK --config.features.run=RUN --workdir=OUT
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "eval_expression",
            "seed": 0,
            "task": {
                "folder": "",  # patches, adata, splits and the gene list
                "gene_list": "var_50genes.json",
                "patients": "",  # csv in the folder: sample_id, patient
                "patient_pattern": "",  # what of a section's name is the patient: "^[A-Z]"
            },
            "features": {
                "run": "",  # work directory of a run on the data set hest
                # Other features, by name: {"kind": "imported", "source": an .h5ad, .parquet, .csv
                # or .npz with section and barcode, "beside": "", "metadata": {}}.
                "tables": ml_collections.ConfigDict(),
            },
            "evaluate": {
                "floors": "chance,pixels,stain,nuclei,layout,twin,layout_trained",
                "variants": "",  # of the protocol beside the official one; "" for all
                "delta": 0.03,
                # What encoders say beyond the position and the total counts of a spot; "" for not.
                "beyond": "position,total_counts",
                "beyond_permutations": 199,
            },
        }
    )
