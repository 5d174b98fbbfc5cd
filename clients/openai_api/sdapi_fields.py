"""What a request of A1111's API may hold. Its names are mapped to the models' own, which may be sent too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from clients.openai_api.edit_fields import EditRequest
from clients.openai_api.fields import MAX_RESULTS
from clients.openai_api.pictures import FILE_SCHEMA, SCHEMA, or_list, picture_file, pictures
from triton_taylorseer_client.messages import InvalidArgument

_NAMES = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "strength": "denoising_strength"}
_RANDOM = -1  # as a seed
# What the models here do in their own way, or not at all, and what says where files are kept.
_WITHOUT_MEANING = (
    *("do_not_save_grid", "do_not_save_samples", "eta", "firstphase_height", "firstphase_width", "force_task_id"),
    *("hr_checkpoint_name", "hr_negative_prompt", "hr_prompt", "hr_resize_x", "hr_resize_y", "hr_sampler_name"),
    *("hr_scale", "hr_scheduler", "hr_second_pass_steps", "hr_upscaler", "image_cfg_scale", "include_init_images"),
    *("initial_noise_multiplier", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_fill", "mask_blur"),
    *("override_settings_restore_afterwards", "resize_mode", "s_churn", "s_noise", "s_tmax", "s_tmin", "sampler_index"),
    *("sampler_name", "save_images", "scheduler", "script_args", "seed_resize_from_h", "seed_resize_from_w"),
    *("send_images", "subseed"),
)
# What would make another picture than the one that is made here; each must be left out, or empty.
_NOT_DONE = (
    *("alwayson_scripts", "enable_hr", "inpainting_mask_invert", "restore_faces", "script_name", "styles"),
    *("subseed_strength", "tiling"),
)


def _not_done(value: Any) -> Any:
    if value:
        raise ValueError("must be left out: no model here does that")
    return value


class _Txt2Img(EditRequest):
    """The fields of A1111's API that mean something here."""

    steps: Any = None
    cfg_scale: Any = None
    denoising_strength: Any = None  # means something with init_images alone
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    init_images: Annotated[Any, BeforeValidator(pictures), WithJsonSchema(or_list(SCHEMA))] = None
    mask: Annotated[Any, BeforeValidator(picture_file), WithJsonSchema(FILE_SCHEMA)] = None
    override_settings: dict[str, Any] = Field({}, description="sd_model_checkpoint is the model")

    @classmethod
    def param_of(cls, name: str, sized: bool) -> str | None:
        return _NAMES.get(name) or super().param_of(name, sized)

    @property
    def negative(self) -> str:
        """What the picture should not show."""
        return self._input("negative_prompt") or ""

    def in_the_models_names(self) -> Self:
        """The request with what the models call otherwise under their names: one frame of each picture.

        Raises:
            InvalidArgument: too many pictures are asked for, or a video.
        """
        count = self.batch_size * self.n_iter
        if count > MAX_RESULTS:
            raise InvalidArgument(f"batch_size x n_iter is {count}, must be at most {MAX_RESULTS}")
        mapped = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "images": self.init_images,
            "mask_image": self.mask,
            "strength": self.denoising_strength if self.init_images else None,
            "model": self.override_settings.get("sd_model_checkpoint"),
        }
        given = {name: value for name, value in mapped.items() if value is not None}
        seed = None if self._input("seed") == _RANDOM else self._input("seed")
        own = {"n": count, "seed": seed, "mask": None, "stream": False}
        return self.of_one_frame().model_copy(update=own | given)


if TYPE_CHECKING:
    Txt2ImgRequest = _Txt2Img
else:
    Txt2ImgRequest = create_model(
        "Txt2ImgRequest",
        __base__=_Txt2Img,
        **{theirs: (EditRequest.model_fields[ours].annotation, None) for ours, theirs in _NAMES.items()},
        **dict.fromkeys(_WITHOUT_MEANING, (Any, None)),
        **dict.fromkeys(_NOT_DONE, (Annotated[Any, BeforeValidator(_not_done)], None)),
    )
