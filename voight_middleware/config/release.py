"""The release of an application, from the variables that deployment platforms set."""

from __future__ import annotations

from collections.abc import Mapping

RELEASE_VARIABLES = (
    "SENTRY_RELEASE",  # docs.sentry.io/platforms/python/configuration/releases: what a team calls its release already
    "DD_VERSION",  # docs.datadoghq.com/getting_started/tagging/unified_service_tagging
    "HEROKU_RELEASE_VERSION",  # devcenter.heroku.com/articles/dyno-metadata; HEROKU_SLUG_COMMIT may be of an older deployment
    "HEROKU_BUILD_COMMIT",
    "HEROKU_SLUG_COMMIT",
    "RENDER_GIT_COMMIT",  # render.com/docs/environment-variables
    "RAILWAY_GIT_COMMIT_SHA",  # docs.railway.com/reference/variables
    "KOYEB_GIT_SHA",  # koyeb.com/docs/build-and-deploy/environment-variables
    "VERCEL_GIT_COMMIT_SHA",  # vercel.com/docs/environment-variables/system-environment-variables
    "KAMAL_VERSION",  # kamal-deploy.org
    "FLY_IMAGE_REF",  # fly.io/docs/machines/runtime-environment; FLY_MACHINE_VERSION differs from machine to machine
    "CONTAINER_VERSION",  # doc.scalingo.com/app/runtime-environment
    "K_REVISION",  # cloud.google.com/run/docs/container-contract
    "GAE_VERSION",  # cloud.google.com/appengine/docs/standard/python3/runtime
    "CONTAINER_APP_REVISION",  # learn.microsoft.com/azure/container-apps/environment-variables
    "AWS_LAMBDA_FUNCTION_VERSION",  # docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    "SOURCE_VERSION",  # from here on: variables of builds, which many images are given under the same name
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
    "CIRCLE_SHA1",
    "GIT_COMMIT",
    "CI_COMMIT_SHA",
    "GITHUB_SHA",
)
"""Where a release is named by what the application is deployed with, and the page that says so; the first that is set counts."""
_NO_RELEASE = frozenset({"$LATEST"})  # AWS Lambda, where no version is published


def deployed_release(environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in RELEASE_VARIABLES:
        release = environ.get(variable, "").strip()
        if release and release not in _NO_RELEASE:
            return release, variable
    return None
