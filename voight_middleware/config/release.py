"""The release of an application, from the variables that deployment platforms set."""

from __future__ import annotations

from collections.abc import Mapping

RELEASE_VARIABLES = (
    # docs.sentry.io/platforms/python/configuration/releases: the release name a team already uses
    "SENTRY_RELEASE",
    "DD_VERSION",  # docs.datadoghq.com/getting_started/tagging/unified_service_tagging
    # devcenter.heroku.com/articles/dyno-metadata; HEROKU_SLUG_COMMIT may be of an older deployment
    "HEROKU_RELEASE_VERSION",
    "HEROKU_BUILD_COMMIT",
    "HEROKU_SLUG_COMMIT",
    "RENDER_GIT_COMMIT",  # render.com/docs/environment-variables
    "RAILWAY_GIT_COMMIT_SHA",  # docs.railway.com/reference/variables
    "KOYEB_GIT_SHA",  # koyeb.com/docs/build-and-deploy/environment-variables
    "VERCEL_GIT_COMMIT_SHA",  # vercel.com/docs/environment-variables/system-environment-variables
    "KAMAL_VERSION",  # kamal-deploy.org
    # fly.io/docs/machines/runtime-environment; FLY_MACHINE_VERSION differs from machine to machine
    "FLY_IMAGE_REF",
    "CONTAINER_VERSION",  # doc.scalingo.com/app/runtime-environment
    "K_REVISION",  # cloud.google.com/run/docs/container-contract
    "GAE_VERSION",  # cloud.google.com/appengine/docs/standard/python3/runtime
    "CONTAINER_APP_REVISION",  # learn.microsoft.com/azure/container-apps/environment-variables
    # docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    "AWS_LAMBDA_FUNCTION_VERSION",
    "SOURCE_VERSION",  # from here on: build variables, which many images share
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
    "CIRCLE_SHA1",
    "GIT_COMMIT",
    "CI_COMMIT_SHA",
    "GITHUB_SHA",
)
"""
The variables in which platforms set the release, each with the page that documents it. The first
one set counts.
"""
_NO_RELEASE = frozenset({"$LATEST"})  # AWS Lambda without a published version


def deployed_release(environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in RELEASE_VARIABLES:
        release = environ.get(variable, "").strip()
        if release and release not in _NO_RELEASE:
            return release, variable
    return None
