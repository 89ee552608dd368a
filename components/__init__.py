"""The work of the platform: one package per stage, from a typed config and input paths to output paths.

Libraries that read patients' files quote what they find odd there, UIDs, names and dates among it. Here, once for every
process of the product, they are silenced: what is wrong with a file is a row of a table or an error of ours.
"""

import logging
import warnings

from components import arithmetic

arithmetic.pin()  # before the first import of NumPy: see there
# Which module a warning counts to depends on the library's stack level: some of highdicom's count to ours.
warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|dicomweb_client)\b")
warnings.filterwarnings("ignore", category=UserWarning, module=r"(components|serving)\b")
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).propagate = False
    logging.getLogger(_name).addHandler(logging.NullHandler())
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # it has a handler of its own, on stderr
