"""Networks: functions of tensors, with the published parameter names as attribute names."""
