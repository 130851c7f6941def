"""Makes the tables, and so many users with a refresh token each, as a login makes it; prints the tokens."""

import json
import sys

import django
from django.core.management import call_command
from django.db import transaction


def main(count: int) -> None:
    django.setup()
    # Models can be imported only now.
    from django.contrib.auth.models import User
    from rest_framework_simplejwt.tokens import RefreshToken

    call_command("migrate", verbosity=0)
    with transaction.atomic():
        users = User.objects.bulk_create(User(username=f"user{number}", password="!") for number in range(count))
        json.dump([str(RefreshToken.for_user(user)) for user in users], sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
