"""A call of a task, as the job that it becomes: its arguments checked and encoded, its identifier, its options."""

from __future__ import annotations

import inspect
import os
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from string import Formatter
from typing import Any

from .. import serializers
from ..exceptions import ConfigurationException, InvalidArgument, WrongArguments
from . import options as task_options

RANDOM_BYTES = 12  # of an identifier that nobody has chosen
DIGEST_BYTES = 16


def spec_of(
    name: str, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `TaskJob.add_job` for a call.

    Args:
        task: None for a producer that has not the code: then nothing is checked.
        options: of this call, as `options.of_call` gives them.
    Raises:
        WrongArguments, NotSerializable, TooLarge, InvalidArgument: nothing was written.
    """
    bound = None if task is None else bind(task, args, kwargs)
    of_task: Mapping[str, Any] = {} if task is None else task.task_options
    serializer = options.get("serializer") or of_task.get("serializer")
    max_size = options.get("max_size") or of_task.get("max_size") or serializers.MAX_ARGUMENTS
    text = serializers.encode_arguments(serializers.get(serializer or serializers.DEFAULT), args, kwargs, max_size)
    spec = task_options.of_adding(of_task, options)
    spec["identifier"] = identifier_of(name, of_task, options, bound, text)
    if "max_concurrency" in spec or "rate_limit" in spec:
        spec["limit_key"] = _of_arguments("limit_key", spec["limit_key"], bound) if "limit_key" in spec else name
    is_chosen = any("identifier" in said or "unique" in said for said in (of_task, options))
    for option in () if is_chosen else ("unique_for", "if_queued"):
        if option in spec:
            raise InvalidArgument(option, spec[option], "given with identifier or unique: else no call is like another")
    spec["task"], spec["arguments"] = name, text
    is_told = serializer not in (None, serializers.DEFAULT)
    if is_told or spec.get("if_queued") == "replace":  # also what the former call was encoded with is replaced
        spec["serializer"] = serializer or serializers.DEFAULT
    return spec


def bind(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], partial: bool = False) -> inspect.BoundArguments:
    """The arguments of a call by the names of the parameters.

    Args:
        partial: some may still be missing.
    Raises:
        WrongArguments: the task does not take them.
    """
    signature: inspect.Signature = task.call_signature
    try:
        return (signature.bind_partial if partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        raise WrongArguments(task.name, str(signature), str(error)) from None


def identifier_of(
    name: str,
    of_task: Mapping[str, Any],
    of_call: Mapping[str, Any],
    bound: inspect.BoundArguments | None,
    arguments: str,
) -> str:
    """The identifier of a call: one of its own, or what its options make of the arguments.

    What is chosen has the name of the task in front: other tasks may choose the same.

    Args:
        arguments: encoded, for a task that this process has not.
    Raises:
        InvalidArgument: the template or the function does not fit the arguments.
    """
    said = of_call if "identifier" in of_call or "unique" in of_call else of_task
    chosen = said.get("identifier")
    if chosen is not None:
        return f"{name}:{_of_arguments('identifier', chosen, bound)}"
    if said.get("unique") == "args":
        return f"{name}:{_digest(bound, arguments)}"
    return f"{name.rpartition(':')[2]}:{urlsafe_b64encode(os.urandom(RANDOM_BYTES)).decode()}"


def _of_arguments(option: str, chosen: Any, bound: inspect.BoundArguments | None) -> str:
    """A text, what a template makes of the arguments, or what a function does.

    Args:
        bound: None where the code of the task is not: then a text is not looked into.
    Raises:
        InvalidArgument: it does not fit the arguments.
    """
    if bound is None and isinstance(chosen, str):
        return chosen
    if bound is None:
        raise InvalidArgument(option, chosen, "a text, for a task whose code is not here")
    bound.apply_defaults()
    try:
        found = chosen.format_map(bound.arguments) if isinstance(chosen, str) else chosen(*bound.args, **bound.kwargs)
    except Exception as error:  # of the user's function, or of the format of a value
        reason = f"something that these arguments fit: {type(error).__name__}: {error}"
        raise InvalidArgument(option, chosen, reason) from error
    if option == "limit_key" and isinstance(chosen, str):
        for name in _names_in(chosen):
            if isinstance(bound.arguments.get(name), serializers.ResultOf):
                raise InvalidArgument(
                    option, chosen, f"made of what is known by now: {name} is a result of another job"
                )
    if not isinstance(found, str) or not found:
        raise InvalidArgument(option, found, "a text that is not empty")
    return found


def _digest(bound: inspect.BoundArguments | None, arguments: str) -> str:
    """The same for equal arguments, however they are given: by place, by name, or by default."""
    text = arguments
    if bound is not None:
        bound.apply_defaults()
        named = sorted(bound.arguments.items())
        text = serializers.get().encode([_ordered(value) for value in named], what="arguments")
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _ordered(value: Any) -> Any:
    """Dicts by their keys, so that equal ones are encoded alike."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=repr)}
    return [_ordered(one) for one in value] if isinstance(value, (list, tuple)) else value


def check_template(owner: str, option: str, template: Any, signature: inspect.Signature) -> None:
    """Look whether all names in the template of an option are parameters.

    Raises:
        ConfigurationException: one is not, or the template cannot be read.
    """
    if not isinstance(template, str):
        return
    try:
        names = _names_in(template)
    except ValueError as error:
        raise ConfigurationException(f"{owner}: Invalid {option} {template!r}: {error}") from None
    for name in names:
        if name not in signature.parameters:
            raise ConfigurationException(f"{owner}: Invalid {option} {template!r}: it has no parameter {name!r}")


def _names_in(template: str) -> list[str]:
    """The parameters that a template is made of; raises ValueError when it cannot be read."""
    fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    return [field.partition(".")[0].partition("[")[0] for field in fields]
