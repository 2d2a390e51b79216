"""The call of the embedded model that the benchmarks compare."""

STEPS, SIDE = 8, 128

#: Arguments of its pipeline, as the service passes them.
CALL = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "guidance_scale": 0, "max_sequence_length": 64}
