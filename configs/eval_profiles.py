"""Files of features, a row a well, through the protocols that their metadata allow.

    BIOIMG_DATA=PATH python -m bioimg_jax.profiles --config=configs/eval_profiles.py --workdir=OUT

As it stands: BBBC021, the CellProfiler features of Ljosa et al. (2013), read from the folder
bbbc021_profiles under PATH. For other files copy this config and change the section "profiles".
"""

import os

import ml_collections

FOLDER = os.path.join(os.environ.get("BIOIMG_DATA", "data"), "bbbc021_profiles")
WELLS = os.path.join(FOLDER, "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")


def _table(kind: str, *, only: str = "") -> dict[str, str]:
    return {
        "kind": kind,  # imported (an encoder: it is judged), or count, pixels, layout, texture
        "source": WELLS,  # .h5ad, .parquet, .csv, or .npz
        "only": only,  # regular expression of the features' names; "" for all
        "ignore": "",  # columns that are neither features nor metadata
        # A file unlike the others has "beside": "" and "metadata": {} of its own here.
    }


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "eval_profiles",
            "seed": 0,
            "profiles": {
                "tables": {
                    "cellprofiler": _table("imported"),
                    "count": _table("count", only="Nuclei_Number_Object_Number"),
                    "intensity": _table("pixels", only="_Intensity_"),
                },
                "beside": "",  # csv or parquet of the metadata, row by row, for an .npz
                # Column of the file -> its name here. Protocols read: compound, dose, moa, gene,
                # chromosome_arm, plate, well and batch.
                "metadata": {"Image_Metadata_Plate": "plate", "Image_Metadata_Well": "well"},
                "extract": {"batch": {"column": "plate", "pattern": r"^(Week\d+)_"}},
                "joins": {  # in the order of their names
                    "1_images": {
                        "path": os.path.join(FOLDER, "BBBC021_v1_image.csv.gz"),
                        "on": {
                            "plate": "Image_Metadata_Plate_DAPI",
                            "well": "Image_Metadata_Well_DAPI",
                        },
                        "columns": {
                            "compound": "Image_Metadata_Compound",
                            "dose": "Image_Metadata_Concentration",
                        },
                        "unmatched": "error",  # or drop, or keep
                    },
                    "2_moa": {
                        "path": os.path.join(FOLDER, "BBBC021_v1_moa.csv"),
                        "on": {"compound": "compound", "dose": "concentration"},
                        "columns": {"moa": "moa"},
                        "unmatched": "keep",
                    },
                },
                "unique": "plate,well",  # what names a row of the files
                # Of files with a row a cell: "plate,well,site; plate,well" averages cells to sites
                # and these to wells, with as many cells of every well where equal is not 0.
                "rollup": {"levels": "", "average": "mean", "equal": 0},
                "control": {"column": "compound", "values": "DMSO"},  # column "": no controls
                "positive": {"column": "compound", "values": "taxol"},  # for the quality of plates
            },
            "evaluate": {
                # The first one is the primary one.
                "alignments": "centerscale_on_controls; none; pca_cs; tvn; tvn_deepprofiler",
                "align_by": "plate",  # column whose values are brought together
                "benchmarks": "nsc,nscb_deepprofiler,nscb_unidino,activity,consistency,"
                "relationships,compound_gene,retrieval",
                # Known pairs of genes: files of two columns, whose first line has their names, or
                # lists of efaar_benchmarking (CORUM, HuMAP, Reactome, SIGNOR, StringDB), where that
                # is installed.
                "pair_lists": "",
                "percentiles": "0.05,0.95",  # of all cosines: pairs beyond are predictions
                "activities": "",  # a file of compounds, genes and the concentration they act at
                # Questions of the benchmark "retrieval", each by a name: which wells are a positive
                # and a negative pair, by columns in which they agree and differ (several: "a,b").
                "retrieval": {
                    "across_plates": {
                        "pos_sameby": "compound",
                        "pos_diffby": "plate",
                        "neg_sameby": "plate",
                        "neg_diffby": "compound",  # "control": the controls are the negatives
                        "multilabel": "",  # a column of both sides whose cells are "a|b"
                        # p-values of every label: permuted among wells that agree in "within", or
                        # copairs, by random rankings.
                        "null": "permuted",
                        "within": "plate",
                        "unit": "compound",  # what the score is a mean over
                    },
                },
                "floors": "chance,count,intensity",
                # Columns that may give the answer away, alone and together: groups with ";" between
                # them, whose columns have "," between. Without any ";" each column and all of them.
                # Of genes the arm is one, where it is there.
                "audit": "batch; plate; well; batch,well; batch,plate,well",
                "average": "mean",  # of the wells of a treatment, or median
                "permutations": 1_000,  # of labels: which treatments are active
                "active_q": 0.05,  # an active treatment, or consistent class, has a smaller one
                "least_replicates": 2,  # wells of a treatment whose activity is asked
                # Treatments whose consistency is asked: all, or active, which are those that some
                # table above, encoder or floor, finds active after the first alignment.
                "consistency_of": "all",
                "beyond": "count,batch",  # tables of one column, or columns: conditional scores
                "beyond_permutations": 199,
                "nuisance": True,  # what encoders know of plate, batch and well
                "screening": True,  # plate quality, layout, hits, dose response, replicates
                "delta": 0.03,
            },
        }
    )
