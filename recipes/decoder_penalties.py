"""What the evidence recipe sets by hand: penalties of the sequence decoder, and how much "not a vertebra" and the plain sum count."""

# Of real transitions (CSI, VerSe, VID): L5-L6 46 of 1,923, T11-L1 8 of 1,884, T12-T13 2 of about 1,975. `missed` stays, by hand.
PENALTIES = {"t13": -6.7, "l6": -3.7, "missing_t12": -5.5, "missed": -4.0, "false_detection": 0.0, "shifted_limit": 0.015}

# Chosen on what localize and segment find in real scans; see `EvidenceModel`.
BY_HAND = {"none_weight": {"geometry": 0.3, "appearance": 0.7}, "least_none": 0.03, "doubt": 0.5, "sum_weight": 0.65,
           "sum_false_detection": -2.0}
