"""Jobs and errors in Django's admin: pages of ours in its frame, with its permissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from redis.exceptions import RedisError

from ... import admin as jobs_admin
from ...admin import ErrorFilter, JobFilter, Page
from ...exceptions import DatabaseException, InvalidArgument, JobNotFound, LimpydJobsException
from ...statuses import STATUSES, Cancellation
from .models import Error, Job

PAGE_SIZE = 50


@dataclass(frozen=True)
class Action:
    """Something that can be done to a job.

    Attributes:
        permission: `change` or `delete`.
        do: called with its ident; answers what was done.
        is_final: must somebody confirm it?
    """

    label: str
    permission: str
    do: Callable[[str], str]
    is_final: bool = False


CANCELLATIONS = {
    Cancellation.CANCELED: "Canceled",
    Cancellation.REQUESTED: "Its worker was asked to cancel it",
    Cancellation.ENDED: "It had ended already",
}


def _requeue(ident: str) -> str:
    jobs_admin.requeue(ident)
    return "Put back in its queue"


def _cancel(ident: str) -> str:
    return CANCELLATIONS[jobs_admin.cancel(ident)]


def _delete(ident: str) -> str:
    jobs_admin.delete(ident)
    return "Deleted"


ACTIONS: dict[str, Action] = {
    "requeue": Action("Requeue", "change", _requeue),
    "cancel": Action("Cancel", "change", _cancel),
    "delete": Action("Delete", "delete", _delete, is_final=True),
}


class JobsForm(forms.Form):
    """Which jobs are listed."""

    status = forms.ChoiceField(
        required=False, choices=[("", "any"), *((letter, name.lower()) for name, letter in STATUSES.items())]
    )
    queue = forms.CharField(required=False)
    job_class = forms.CharField(required=False, label="Class")
    identifier = forms.CharField(required=False)

    def wanted(self) -> JobFilter:
        """The filter, once the form is valid."""
        said = self.cleaned_data
        queues, statuses = filter(None, [said["queue"]]), filter(None, [said["status"]])
        return JobFilter(
            tuple(queues), tuple(statuses), said["identifier"] or None, job_class=said["job_class"] or None
        )


class ErrorsForm(forms.Form):
    """Which errors are listed."""

    type = forms.CharField(required=False)
    code = forms.CharField(required=False)
    queue = forms.CharField(required=False)
    job_class = forms.CharField(required=False, label="Class")
    since = forms.CharField(required=False, help_text="UTC, YYYY-MM-DD HH:MM:SS or the beginning of one")

    def wanted(self) -> ErrorFilter:
        """The filter, once the form is valid."""
        given = {name: self.cleaned_data[name] or None for name in ("type", "code", "job_class", "since")}
        return ErrorFilter(tuple(filter(None, [self.cleaned_data["queue"]])), **given)


class Readable(TemplateResponse):
    """A page that can be sent: bytes of Redis that are no UTF-8 are shown as `\\udcff`, and fail no other row."""

    @property
    def rendered_content(self) -> str:
        """See Django."""
        return str(super().rendered_content).encode(errors="backslashreplace").decode()


def _while_redis_answers(view: Callable[..., Any]) -> Callable[..., Any]:
    """A view that says so when Redis cannot be used."""

    @wraps(view)
    def guarded(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, request, *args, **kwargs)
        except (RedisError, DatabaseException) as error:
            return self.page(request, "limpyd_jobs/outage.html", {"title": "Redis cannot be used", "error": error}, 503)

    return guarded


class RedisAdmin(admin.ModelAdmin):
    """A list, page by page, of what is in Redis. There is no table: what needs one is left out."""

    form_class: Any = None
    list_template = ""

    def has_add_permission(self, request: Any) -> bool:
        """Never: a program adds jobs."""
        return False

    def get_urls(self) -> list[Any]:
        """The list alone."""
        return [self.url("", self.changelist_view, "changelist")]

    def url(self, route: str, view: Callable[..., Any], name: str) -> Any:
        """A page of this model, for who may use the admin."""
        return path(route, self.admin_site.admin_view(view), name=f"limpyd_jobs_{self.opts.model_name}_{name}")

    def page(self, request: Any, template: str, context: Mapping[str, Any], status: int = 200) -> Any:
        """An answer in the frame of the admin."""
        request.current_app = self.admin_site.name
        frame = {**self.admin_site.each_context(request), "opts": self.opts}
        return Readable(request, template, {**frame, **context}, status=status)

    @_while_redis_answers
    def changelist_view(self, request: Any, extra_context: Mapping[str, Any] | None = None) -> Any:
        """A page of the list."""
        self.check_may_see(request)
        form, found = self.form_class(request.GET), Page[Any]([])
        try:
            if form.is_valid():
                found = self.find(form.wanted(), PAGE_SIZE, request.GET.get("after") or None)
        except InvalidArgument as error:
            messages.error(request, str(error))
        context = {"title": str(self.opts.verbose_name_plural).capitalize(), "form": form, "page": found}
        context |= {"next": _next(request, found), **(extra_context or {})}
        return self.page(request, self.list_template, context)

    def find(self, wanted: Any, limit: int, after: str | None) -> Page[Any]:
        """A page of what is wanted."""
        raise NotImplementedError

    def check_may_see(self, request: Any) -> None:
        """Raise PermissionDenied for who may not."""
        if not self.has_view_permission(request):
            raise PermissionDenied


class JobAdmin(RedisAdmin):
    """The jobs, a page for each, and what may be done to them."""

    form_class = JobsForm
    list_template = "limpyd_jobs/jobs.html"

    def get_urls(self) -> list[Any]:
        """The list, and a page for each job."""
        return [*super().get_urls(), self.url("<path:object_id>/", self.change_view, "change")]

    def find(self, wanted: JobFilter, limit: int, after: str | None) -> Page[Any]:
        """A page of jobs; `admin` finds them in bounded steps."""
        found = jobs_admin.find_jobs(wanted, limit, after)
        return Page([_shown(record) for record in found.items], found.next)

    def changelist_view(self, request: Any, extra_context: Mapping[str, Any] | None = None) -> Any:
        """A page of the list; or something is done to jobs of it."""
        if request.method == "POST":
            return self.act(request, request.POST.getlist("ident"))
        return super().changelist_view(request, {"actions": self.actions_for(request), **(extra_context or {})})

    @_while_redis_answers
    def change_view(self, request: Any, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """All of a job; or something is done to it."""
        self.check_may_see(request)
        ident = unquote(object_id)
        if request.method == "POST":
            return self.act(request, [ident])
        try:
            details, explanation = jobs_admin.show(ident), jobs_admin.explain(ident)
        except JobNotFound as error:
            raise Http404(str(error)) from error
        job = _shown(details.record)
        context = {"title": job["ident"], "job": job, "details": details, "explanation": explanation}
        return self.page(request, "limpyd_jobs/job.html", {**context, "actions": self.actions_for(request)})

    def actions_for(self, request: Any) -> list[tuple[str, str]]:
        """What this user may do, with its label."""
        return [(name, action.label) for name, action in ACTIONS.items() if self.may(request, action)]

    def may(self, request: Any, action: Action) -> bool:
        """Has this user the permission?"""
        check = self.has_delete_permission if action.permission == "delete" else self.has_change_permission
        return bool(check(request))

    @_while_redis_answers
    def act(self, request: Any, idents: list[str]) -> Any:
        """Do what was asked for to each of these jobs, once it is confirmed if it must be."""
        name = request.POST.get("action", "")
        action = ACTIONS.get(name)
        if action is None or not self.may(request, action):
            raise PermissionDenied
        if action.is_final and idents and "confirmed" not in request.POST:
            context = {"title": f"{action.label} what follows?", "idents": idents, "action": name}
            return self.page(request, "limpyd_jobs/confirm.html", context)
        if not idents:
            messages.warning(request, "No job was chosen: nothing was done")
        for ident in idents:
            self.act_on(request, action, ident)
        return HttpResponseRedirect(self.list_url() if action.is_final else request.get_full_path())

    def list_url(self) -> str:
        """Where the list is."""
        return str(reverse("admin:limpyd_jobs_job_changelist", current_app=self.admin_site.name))

    def act_on(self, request: Any, action: Action, ident: str) -> None:
        """Do it to one, say what came of it, and note it in the log of the admin."""
        try:
            done = action.do(ident)
        except LimpydJobsException as error:
            if isinstance(error, DatabaseException):
                raise
            messages.error(request, str(error))
            return
        messages.success(request, f"{done}: {ident}")
        self.log_change(request, Job(ident=ident), done)


class ErrorAdmin(RedisAdmin):
    """The errors, each with a link to its job."""

    form_class = ErrorsForm
    list_template = "limpyd_jobs/errors.html"

    def find(self, wanted: ErrorFilter, limit: int, after: str | None) -> Page[Any]:
        """A page of errors."""
        found = jobs_admin.find_errors(wanted, limit, after)
        return Page([{"error": one, "job_id": quote(one.job)} for one in found.items], found.next)

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Never: they are a history."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Never: they go with their jobs."""
        return False


def _shown(record: Any) -> dict[str, Any]:
    """A job, as the templates need it."""
    state = STATUSES.by_value(record.status, record.status or "unknown").lower()
    return {"ident": record.ident, "id": quote(record.ident), "state": state, "record": record}


def _next(request: Any, found: Page[Any]) -> str | None:
    """The query of the next page."""
    if found.next is None:
        return None
    query = request.GET.copy()
    query["after"] = found.next
    return str(query.urlencode())


admin.site.register(Job, JobAdmin)
admin.site.register(Error, ErrorAdmin)
