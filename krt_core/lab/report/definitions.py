"""What each table and figure of a report shows, in words. Formulas and sources stand in docs/metrics.md."""

from ...metrics import F1_THRESHOLD

LEVEL = 0.05  # at which two methods are told apart, of the family of all pairs

SPREAD = "± is the standard deviation (n − 1) over all runs of a method, that is over seeds and class orders together."

RESULTS = (
    "mAP, CF1 and OF1 in percent. Average mAP: mean over the sessions of the mAP over the classes seen so "
    f"far; last mAP, CF1, OF1: after the last session, F1 at score > {F1_THRESHOLD}, CF1 the mean of the "
    "per-class F1. Forgetting, in points: best AP after an earlier session minus last AP, on the whole test"
    " set, averaged over the classes of all sessions but the last. Time: median over runs; peak memory: "
    f"largest of all runs. Backbone: trained in every session, in the first session alone, or frozen "
    f"(its first weights). {SPREAD} Bold: the best of our lines, upper bounds and LEAK lines aside. – : not "
    "known or not defined."
)

_BAND = "Line: mean over runs; band: one standard deviation (n − 1) where a method has several runs."
CURVES = {
    "mAP_seen": "mAP seen: over all classes learned so far, on the test images that show one of them. It falls even "
    f"without forgetting, because the task grows. {_BAND}",
    "mAP_base": "mAP base: over the classes of the first session, on the test images that show one of them. It tells "
    f"how the oldest classes are kept. {_BAND}",
    "mAP_new": "mAP new: over the classes of the session just learned, on the test images that show one of them. It "
    f"tells how well new classes are learned. {_BAND}",
}
AUTHORS = " Dashed grey: the KRT authors' own training logs (published; alphabetical class order)."

SESSIONS = f"mAP seen after each session, in percent: the values of the figure above. {SPREAD}"

GROWN = (
    " Of a run that has grown (krt extend) the whole test set is, for each class, the test images that were there when "
    "the class was learned."
)

FORGETTING = (
    "Forgetting in points: for each class the best AP after an earlier session minus the AP after the last,"
    " on the whole test set, averaged over the classes of all sessions but the last. Bar: mean over runs; "
    f"whisker: one standard deviation (n − 1); marks: single runs. Below zero: gained.{GROWN}"
)

FORGETTING_BY_DEFINITION = (
    "Every definition of forgetting, in points. max: best AP after an earlier session minus the last; "
    "first: AP after the class's own session minus the last. class: averaged over classes; task: AP first "
    "averaged over the classes of a session. fixed: AP on the whole test set after every session; seen: on "
    "the images with a class seen so far, which grow in number, so that even a model that never changes "
    "loses; own: on the images with a class of the class's own session. The headline is max class fixed. "
    f"{SPREAD}{GROWN}"
)

CLASSES = (
    "AP in percent of every class after the last session, on the whole test set; {order}; classes in the "
    "order in which they were learned. A value is the mean over a method's runs in this class order; their "
    f"number stands in brackets.{GROWN}"
)

F1 = f"CF1 and OF1 after the last session at score > {F1_THRESHOLD} and at 0.5. {SPREAD}"
F1_CHOSEN = (
    f"{F1} Chosen: each at the one threshold for all classes that gave the highest of it on validation images, in the "
    "trial that chose the setting; the test images were not opened for it."
)
CALIBRATED = (
    " Calibrated: at each class's own threshold on its calibrated probability; ECE, in points: by how much scores, and "
    "calibrated probabilities, are off the share of images that show a class, mean over classes. Both were fitted on "
    "images held out of each session (data.validation); no test image has a say in it."
)

COSTS = (
    "Time: median over runs of the wall-clock time of a whole run, training, testing and choosing exemplars"
    " included; compare it on the same hardware only. Peak memory: largest over sessions and runs, of the "
    "tensors of the main process on a GPU, or of the whole process on a CPU since its start (so a run that "
    "shares a process with earlier runs has theirs too); – for runs made before it was recorded. Stored: "
    "exemplars at the end with the bytes of their files, and as state the bytes of what else the method keeps, as "
    "ridge regression its sums; median over runs."
)

RUNS = (
    "Every finished run of this setting: what made it, and when its last file was written (local time). "
    "Commit: of the workbench; +changes: its files differed from it."
)

SEARCH = (
    "Chosen on validation images, held out of the training images, before any run below was made: the test images were "
    "not opened for it. Every trial stands in trials.csv. The runs below train on all training images."
)

LEFT_OUT = "Run folders that no number on this page comes from, why, and how far they got."

PUBLISHED = (
    "Published lines are as their authors gave them: alphabetical class order, one number without spread, "
    "F1 at threshold 0.8 unless noted. What their first weights had seen is not known here: the file that "
    "the published KRT code links to had been trained on all 80 COCO classes."
)

LEAK = (
    "LEAK: the first weights of these runs had seen the labels to be learned, and were accepted with "
    "--allow-leak. Their numbers are no result of incremental learning and are never the best."
)

ORACLE = (
    "ORACLE: these runs were shown the true labels of old classes, which no method may see. They tell what restored "
    "labels can bring at most, stand with the upper bounds and are never the best."
)

RECORDED = (
    "recorded: only a table is left of these runs. Data set and protocol have the names of the others here; that their "
    "images and labels are the same was not checked. They have no curves, classes or provenance below."
)

MIXED = (
    "mixed: a run was interrupted and went on elsewhere or otherwise (another commit, machine, version of a library; "
    "the table of runs says what). Its sessions are not all from one and the same making."
)

OTHER_DATA = (
    "The runs here were not all made on the same data: labels or images of the data set were changed between them. "
    "Lines that this tells apart have data= and a hash of theirs; part of any difference may be the data's."
)

CHOSEN_ON_TEST = (
    "epoch chosen on test: train.report=best took each session's best epoch as measured on the test images, which the "
    "scores then are of, so they are too good. With data.validation it is chosen on images held out of training."
)

UNEQUAL = (
    "The methods do not all have the same seeds and class orders, so part of a difference may be theirs. "
    "The table of runs tells which each has."
)

RANKS = (
    "Mean ranks over the seeds and class orders that every method here has, 1 is best (Demšar, JMLR 2006). A bar joins "
    f"neighbours of which no pair is told apart at {LEVEL} by the tests below."
)

DIFFERENCES = (
    "Two methods are compared at the same seed and class order: mean ± standard deviation of the differences, "
    "two-sided paired t test, p corrected for the number of pairs by Holm's method. – : all differences are the same "
    "number, which the test has nothing to measure by. Every pair stands in table_tests.csv; LEAK lines take no part."
)

STABILITY = (
    "What is kept against what is learned: forgetting as above, against the mAP of a session's own new classes right "
    "after it, on the images that show one, mean over the sessions after the first. Whiskers: one standard deviation. "
    "Hollow: upper bounds."
)

COST = (
    "What it costs: average mAP against the wall-clock seconds of a session, tests included, median over runs. Compare "
    "them on the same hardware only. Whiskers: one standard deviation. Hollow: upper bounds."
)
