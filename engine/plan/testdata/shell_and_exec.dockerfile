FROM busybox
RUN echo "$HOME" \
  && true
RUN ["/bin/true", "$HOME"]
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN a | b
CMD ["exec", "form"]
CMD shell form
ENTRYPOINT []
