"""Serves diffusers pipelines on Triton Inference Server with a TaylorSeer cache per request.

The rooms, in the order of their imports: each imports only from those above it (`tests/test_layout.py`).

    taylorseer/    the algorithm: which steps are full, how the others are forecast; a package of its own
    the nouns      the files beside this one: requests, settings, tensors, errors, paths; all rooms may use them
    families/      how a transformer's forward splits into embed, block stack and finish; a file a family
    engines/       what runs the block stack; the packer puts full steps of several requests into one call
    denoising/     one request, from its fields to its pixels
    serving/       many requests on one model, without Triton: which one runs, which waits, at which interval; what they
                   cost, and on which GPU the model fits
    building/      what is made before serving: engines, calibration, tuned presets
    ops/           a tritonserver process, and the guard before its ports: started, watched, stopped
    triton_model/  the models that Triton loads; the only room that imports triton_python_backend_utils
    cli/           `triton-taylorseer`, a file a command

Read along one request:

    taylorseer/schedule.py, predictors.py, anchors.py, session.py    the cache of one request
    fields.py, request.py, config.py           what a client may ask for, and how a model is set up
    families/base.py, flux.py                  the contract of a family, and one of them
    denoising/generation.py, transformer.py    the pipeline's run, and what stands in for its transformer
    engines/base.py, packer.py                 the contract of an engine, and the queue in front of it
    serving/admission.py                       the queue in front of it all
    triton_model/stream.py, runner.py, job.py  from Triton's request to the job, and back

`plugin.pipeline` is the door for Python users, who have it as `from triton_taylorseer import PipelineHost`.
"""
