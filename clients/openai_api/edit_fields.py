"""What a request for an edit may hold: pictures and a mask, and all that a request for pictures may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, WithJsonSchema

from clients.openai_api.fields import ImageRequest
from clients.openai_api.pictures import MAX_PICTURES, SCHEMA, Address, or_list, picture, pictures
from triton_taylorseer_client.messages import InvalidArgument

_NAMES = {"input_image": "image", "mask_image": "mask"}  # the model's: OpenAI's
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MAX_PICTURES}
FORM_FILES = {"image": _FILES, "images": _FILES, "input_image": _FILES, "mask": _FILE, "mask_image": _FILE}


def _no_markup(_: Any) -> None:
    raise ValueError("must be left out: no model here draws what is sketched on a picture")


class EditRequest(ImageRequest):
    """The fields of OpenAI's edits. `image` and `images` are the same, and so is the model's own `input_image`."""

    events: ClassVar[str] = "image_edit"
    picture_fields: ClassVar[tuple[str, ...]] = ("image", "images", "input_image")  # names of the same

    image: Annotated[Any, BeforeValidator(pictures), WithJsonSchema(or_list(SCHEMA))] = None
    images: Annotated[Any, BeforeValidator(pictures), WithJsonSchema(or_list(SCHEMA))] = None
    mask: Annotated[Any, BeforeValidator(picture), WithJsonSchema(SCHEMA)] = None
    markup: Annotated[Any, BeforeValidator(_no_markup)] = None

    @classmethod
    def param_of(cls, name: str, sized: bool) -> str | None:
        return super().param_of(_NAMES.get(name, name), sized)

    @property
    def has_pictures(self) -> bool:
        """Whether a picture is given, or OpenAI's mask, which means nothing without one."""
        return any(self._input(name) is not None for name in (*self.picture_fields, "mask"))

    def given_pictures(self) -> list[bytes | Address]:
        """The pictures, under whatever name they came.

        Raises:
            InvalidArgument: there are none, or some under two names.
        """
        given = self._only_one_of(*self.picture_fields)
        if given is None:
            raise InvalidArgument(
                f"image is missing, must be 1 to {MAX_PICTURES} pictures: "
                "files of multipart/form-data, or base64 or data URLs in JSON"
            )
        return given

    def given_mask(self) -> bytes | Address | None:
        """OpenAI's mask, or None.

        Raises:
            InvalidArgument: the model's own `mask_image` is given too.
        """
        self._only_one_of("mask", "mask_image")
        return self.mask

    def with_files(self, files: list[bytes], mask: bytes | None) -> Self:
        """The request with the models' inputs in place of OpenAI's.

        Args:
            files: the pictures.
            mask: white where the picture is edited; None for the one that the request has in `mask_image`, if any.
        """
        own = self._input("mask_image")
        return self.model_copy(update={"input_image": files, "mask_image": own if mask is None else mask})

    def _only_one_of(self, *names: str) -> Any:
        given = [name for name in names if self._input(name) is not None]
        if len(given) > 1:
            one, other = given[:2]
            raise InvalidArgument(f"{other} is given beside {one}, must be left out: only one of them applies")
        return self._input(given[0]) if given else None


def openapi_body(kind: type[EditRequest], files: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The request body as OpenAPI tells of it. FastAPI tells only of bodies that it reads itself.

    Args:
        kind: of request, in JSON.
        files: the fields that are files in a form, with their schemas; None where a form is not taken.
    """
    fields = kind.model_json_schema()
    kinds = {"application/json": fields}
    if files is not None:
        kinds["multipart/form-data"] = fields | {"properties": fields["properties"] | files}
    return {"required": True, "content": {name: {"schema": schema} for name, schema in kinds.items()}}
