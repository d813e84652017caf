"""Facts about the MedMNIST v2 sets of 2-D images, as their authors publish them.

Yang et al. 2023, "MedMNIST v2", Scientific Data 10:41; files at Zenodo record 10519652.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CITATION = (
    "Yang J, Shi R, Wei D, et al. MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Scientific Data 10, 41 (2023)."
)
HOME = "https://zenodo.org/records/10519652"
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class MedMnist:
    """One set. counts: images in train, val, test. md5: of the file of each of SIZES.

    class_names are the published ones, but for RetinaMNIST, which publishes grades 0 to 4 only.
    """

    flag: str
    title: str
    class_names: tuple[str, ...]
    template: str
    counts: tuple[int, int, int]
    md5: tuple[str, str, str, str]
    licence: str = "CC BY 4.0"
    warning: str = ""


_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

MEDMNIST = {
    fact.flag: fact
    for fact in (
        MedMnist(
            "pathmnist",
            "PathMNIST",
            (
                "adipose",
                "background",
                "debris",
                "lymphocytes",
                "mucus",
                "smooth muscle",
                "normal colon mucosa",
                "cancer-associated stroma",
                "colorectal adenocarcinoma epithelium",
            ),
            "a histology image of {}.",
            (89996, 10004, 7180),
            (
                "a8b06965200029087d5bd730944a56c1",
                "55aa9c1e0525abe5a6b9d8343a507616",
                "ac42d08fb904d92c244187169d1fd1d9",
                "2c51a510bcdc9cf8ddb2af93af1eadec",
            ),
        ),
        MedMnist(
            "dermamnist",
            "DermaMNIST",
            (
                "actinic keratoses and intraepithelial carcinoma",
                "basal cell carcinoma",
                "benign keratosis-like lesions",
                "dermatofibroma",
                "melanoma",
                "melanocytic nevi",
                "vascular lesions",
            ),
            "a dermoscopy image of {}.",
            (7007, 1003, 2005),
            (
                "0744692d530f8e62ec473284d019b0c7",
                "b70a2f5635c6199aeaa28c31d7202e1f",
                "2defd784463fa5243564e855ed717de1",
                "8974907d8e169bef5f5b96bc506ae45d",
            ),
            licence="CC BY-NC 4.0",
            warning="Train and test are known to share lesions (arXiv 2401.14497).",
        ),
        MedMnist(
            "octmnist",
            "OCTMNIST",
            ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
            "an optical coherence tomography image of the retina with {}.",
            (97477, 10832, 1000),
            (
                "c68d92d5b585d8d81f7112f81e2d0842",
                "e229e9440236b774d9f0dfef9d07bdaf",
                "0a97e76651ace45c5d943ee3f65b63ae",
                "abc493b6d529d5de7569faaef2773ba3",
            ),
        ),
        MedMnist(
            "pneumoniamnist",
            "PneumoniaMNIST",
            ("normal", "pneumonia"),
            "a chest X-ray of {}.",
            (4708, 524, 624),
            (
                "28209eda62fecd6e6a2d98b1501bb15f",
                "8f4eceb4ccffa70c672198ea285246c6",
                "05b46931834c231683c68f40c47b2971",
                "d6a3c71de1b945ea11211b03746c1fe1",
            ),
        ),
        MedMnist(
            "retinamnist",
            "RetinaMNIST",
            (
                "no diabetic retinopathy",
                "mild non-proliferative diabetic retinopathy",
                "moderate non-proliferative diabetic retinopathy",
                "severe non-proliferative diabetic retinopathy",
                "proliferative diabetic retinopathy",
            ),
            "a retinal fundus photograph of {}.",
            (1080, 120, 400),
            (
                "bd4c0672f1bba3e3a89f0e4e876791e4",
                "afda852cc34dcda56f86ad2b2457dbcc",
                "e48e916a24454daf90583d4e6efb1a18",
                "eae7e3b6f3fcbda4ae613ebdcbe35348",
            ),
        ),
        MedMnist(
            "breastmnist",
            "BreastMNIST",
            ("malignant", "normal, benign"),
            "a breast ultrasound image of {} tissue.",
            (546, 78, 156),
            (
                "750601b1f35ba3300ea97c75c52ff8f6",
                "742edef2a1fd1524b2efff4bd7ba9364",
                "363e4b3f8d712e9b5de15470a2aaadf1",
                "b56378a6eefa9fed602bb16d192d4c8b",
            ),
        ),
        MedMnist(
            "bloodmnist",
            "BloodMNIST",
            (
                "basophil",
                "eosinophil",
                "erythroblast",
                "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
                "lymphocyte",
                "monocyte",
                "neutrophil",
                "platelet",
            ),
            "a blood smear image of a {}.",
            (11959, 1712, 3421),
            (
                "7053d0359d879ad8a5505303e11de1dc",
                "2b94928a2ae4916078ca51e05b6b800b",
                "adace1e0ed228fccda1f39692059dd4c",
                "b718ff6835fcbdb22ba9eacccd7b2601",
            ),
        ),
        MedMnist(
            "tissuemnist",
            "TissueMNIST",
            (
                "Collecting Duct, Connecting Tubule",
                "Distal Convoluted Tubule",
                "Glomerular endothelial cells",
                "Interstitial endothelial cells",
                "Leukocytes",
                "Podocytes",
                "Proximal Tubule Segments",
                "Thick Ascending Limb",
            ),
            "a fluorescence microscopy image of the kidney cortex, {}.",
            (165466, 23640, 47280),
            (
                "ebe78ee8b05294063de985d821c1c34b",
                "123ece2eba09d0aa5d698fda57103344",
                "61b955355d7425a89687b06cca3ce0c2",
                "b077128c4a949f0a4eb01517f9037b9c",
            ),
        ),
        MedMnist(
            "organamnist",
            "OrganAMNIST",
            _ORGANS,
            "an axial abdominal CT image of the {}.",
            (34561, 6491, 17778),
            (
                "68e3f8846a6bd62f0c9bf841c0d9eacc",
                "2dcccc29b88e6da5a01161ef20cda288",
                "eeae80d0a227a8d099027e1b3cfd3b60",
                "50747347e05c87dd3aaf92c49f9f3170",
            ),
        ),
        MedMnist(
            "organcmnist",
            "OrganCMNIST",
            _ORGANS,
            "a coronal abdominal CT image of the {}.",
            (12975, 2392, 8216),
            (
                "b9ceb9546e10131b32923c5bbeaea2b1",
                "3ce34a8724ea6f548e6db4744d03b6a9",
                "773c1f009daa3fe5d9a2a201b2a7ed94",
                "050f5e875dc056f6768abf94ec9995d1",
            ),
        ),
        MedMnist(
            "organsmnist",
            "OrganSMNIST",
            _ORGANS,
            "a sagittal abdominal CT image of the {}.",
            (13932, 2452, 8827),
            (
                "9ab87b696fb54e2a387ebe992d6ed5f1",
                "53a6d115339d874c25e309a994ff46d3",
                "ded0c5fa01a95dc4978b956f613e9b8e",
                "b354719e553fbbb2513d5533f52a4cb1",
            ),
        ),
    )
}

# Why the other sets of MedMNIST cannot be read.
REFUSED = {
    "chestmnist": "is multi-label: an image has several of its 14 findings at once",
    **{
        f"{part}mnist3d": "holds volumes; vipbench reads 2-D images"
        for part in ("organ", "nodule", "adrenal", "fracture", "vessel", "synapse")
    },
}


def recognise(stem: str) -> tuple[str | None, int | None]:
    """The flag and the size that a file name names: `bloodmnist_64` -> ("bloodmnist", 64)."""
    flags = "|".join([*MEDMNIST, *REFUSED])
    found = re.fullmatch(rf"({flags})(?:[-_]?(28|64|128|224))?", stem.lower())
    if found is None:
        return None, None
    return found[1], int(found[2]) if found[2] else None
